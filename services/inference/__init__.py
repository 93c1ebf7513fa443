"""The inference gateway: finds out which version a request means and asks the replica that serves its trunk."""
