"""Comparisons with peers in the same run: `lawf bench`."""
