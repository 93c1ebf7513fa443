"""Predictions: routes → operations → queries."""
