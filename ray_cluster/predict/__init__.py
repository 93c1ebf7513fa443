"""One attempt of a batch prediction: labels every image of a source with a published version."""
