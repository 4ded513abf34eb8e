"""Answers about one scan."""
