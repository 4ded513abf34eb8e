"""Outside world <-> CTVolume. Never imports torch."""
