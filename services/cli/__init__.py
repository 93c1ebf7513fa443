"""The `rekindle` command, on the Python client."""
