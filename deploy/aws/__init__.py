"""Rekindle on EC2: an on-demand head, spot workers, a bucket. `python -m deploy.aws`."""
