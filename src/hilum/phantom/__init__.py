"""Truth by construction: chest CTs whose every voxel is known. Synthetic, and called so everywhere."""
