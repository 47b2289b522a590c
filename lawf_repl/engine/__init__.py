"""Running the model: loading, cache, decoding."""

from lawf_repl.collector import paused

with paused():  # whichever module of this package comes first: all of them need torch
    from lawf_repl.engine import base as base
