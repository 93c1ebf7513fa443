"""Fixtures for every test. Each server a test needs is a real process that the fixture starts and stops."""

import signal

import pytest

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


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the tests out, one has all that start a Ray cluster: two at a time are more than
    two cores can bear. The others go file by file, with their fixtures."""
    for item in items:
        name = "cluster" if item.get_closest_marker("cluster") else item.path.as_posix()
        item.add_marker(pytest.mark.xdist_group(name))
