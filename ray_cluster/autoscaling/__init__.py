"""Getting machines for the cluster from EC2, where the kind that was asked for may not be had."""
