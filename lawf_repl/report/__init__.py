"""Sessions as one HTML page that needs nothing else: no script, no picture, no font from anywhere."""
