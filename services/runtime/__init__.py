"""What every service is built from. Imports contracts only."""
