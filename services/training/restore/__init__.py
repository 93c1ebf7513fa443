"""Rebuilds a lost database from the bucket."""
