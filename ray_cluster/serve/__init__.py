"""Ray Serve: one application per trunk. Replicas run the trunk for every model that is built on it."""
