"""What puts Rekindle on machines of a cloud. Used from a checkout; no part of the installed package."""
