"""Training jobs: accepting, showing and cancelling them, and their event streams."""
