"""Many studies: preparation, stores, splits."""
