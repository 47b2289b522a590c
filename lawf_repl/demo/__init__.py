"""The embedded demo: its world, its model, its planted mistakes."""
