"""Drawing pictures with known contents: for the demo's images, and for pretraining `rekindle_tiny`. Pillow only."""
