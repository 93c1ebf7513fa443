"""Fixtures for every test. Each server a test needs is a real process that the fixture starts and stops."""

import signal

pytest_plugins = [
    "tests.servers.s3",
    "tests.servers.postgres",
    "tests.servers.ray_local",
    "tests.servers.data",
    "tests.servers.training",
    "tests.servers.local_stack",
]

# Started in the background, as some runners do, a process ignores Ctrl-C, and so would every process it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
