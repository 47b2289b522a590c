"""Adapters written for the software that serves them, and verified by loading them there in a fresh process."""
