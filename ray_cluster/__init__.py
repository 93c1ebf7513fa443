"""What runs on the Ray cluster: vision, training attempts and serving replicas."""
