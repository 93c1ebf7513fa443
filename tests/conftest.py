"""Fixtures for every test. Each server a test needs is a real process that the fixture starts and stops."""

pytest_plugins = [
    "tests.servers.s3",
    "tests.servers.postgres",
    "tests.servers.ray_local",
    "tests.servers.data",
    "tests.servers.training",
    "tests.servers.local_stack",
]
