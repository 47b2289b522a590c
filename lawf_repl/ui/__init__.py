"""The terminal front: themes, renderers, the answer view and the loop. Nothing here imports torch."""
