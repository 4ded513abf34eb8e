"""One file per loss, its source cited."""
