"""The whole of Rekindle on one machine: a Ray head and both gateways, started, watched and stopped together."""
