"""Evidence: every number we publish."""
