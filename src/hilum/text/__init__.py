"""Report -> what can be learned. Never imports torch."""
