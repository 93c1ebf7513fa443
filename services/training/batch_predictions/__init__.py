"""Batch predictions: accepting, showing and cancelling them, and their results."""
