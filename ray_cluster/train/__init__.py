"""One attempt of a job: preflight, features, fit, evaluate, publish."""
