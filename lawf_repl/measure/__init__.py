"""Measuring what an adapter did: probes and scorecard."""
