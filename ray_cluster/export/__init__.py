"""Versions as archives for other programs: one Ray job builds one archive."""
