"""Datasets: registered prefixes and uploads."""
