"""Collects the bucket's garbage: what no version, no dataset and no unfinished job refers to."""
