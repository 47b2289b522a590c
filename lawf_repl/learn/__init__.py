"""Learning a correction: adapter, batch, objective, training loop."""
