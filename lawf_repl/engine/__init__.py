"""Running the model: loading, cache, decoding."""
