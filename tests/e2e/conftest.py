"""A whole installation, for the folder."""

from tests.servers.local_stack import stack

__all__ = ["stack"]
