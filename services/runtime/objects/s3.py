"""An object store in an S3 bucket."""
