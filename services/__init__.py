"""Rekindle's HTTP services, command line, and the contracts they share with the Ray cluster."""
