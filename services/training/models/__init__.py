"""Models: versions, aliases, promotion and roll-back."""
