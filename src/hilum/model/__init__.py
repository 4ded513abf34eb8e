"""Tensors only, no files."""
