"""Where in an image the evidence for a label lies."""
