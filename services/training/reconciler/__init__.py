"""Compares what should run with what Ray says is running, and acts."""
