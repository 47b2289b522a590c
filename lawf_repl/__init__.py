"""lawf: fix one misbehaving prompt of a local language model, token by token, and change nothing else."""

__version__ = "0.1.0"
