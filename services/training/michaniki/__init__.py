"""Michaniki's calls, over the operations of datasets, training jobs and batch predictions."""
