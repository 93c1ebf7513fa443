"""Interruptions of spot machines: noticing them, and draining the Ray node before the machine goes."""
