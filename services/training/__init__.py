"""The training gateway: datasets, training jobs, models, and the reconciler that keeps accepted jobs going."""
