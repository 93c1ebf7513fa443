"""Fixtures for every test. Each server a test needs is a real process that the fixture starts and stops."""

import signal
from functools import cache
from pathlib import Path

import pytest
import structlog
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests import slow_tests

pytest_plugins = [
    "tests.servers.s3",
    "tests.servers.ec2",
    "tests.servers.postgres",
    "tests.servers.data",
    "tests.servers.training",
    "tests.servers.platform",
    "tests.servers.local_stack",
]

# Started in the background, as some runners do, a process ignores Ctrl-C, and so would every process it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


ROOT = Path(__file__).parents[1]
CLUSTER = "cluster"
"""The mark of tests that start a Ray cluster, which a file has for all of its tests or for none. The folder of the same
name has those whose cluster is one node."""
STRIKES = "chaos"
"""The folder of tests of clusters of several nodes, which come and go."""
CAMPAIGN = "campaign"
"""The folder of the one that strikes a whole deployment, which is made of several nodes as well."""
END_TO_END = "e2e"
"""The folder of tests of a whole installation, of one node as well."""


def pytest_configure(config: pytest.Config) -> None:
    slow_tests.install(config)
    # What structlog uses until a process configures its logs draws a traceback with all variables: seconds for each.
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that start a cluster begin first. What is killed and frozen needs to be noticed and replaced in time, so
    the campaign comes last: beside tests of no cluster, or alone."""
    order = [STRIKES, CAMPAIGN, END_TO_END, CLUSTER, "others"]

    def kind(item: pytest.Item) -> str:
        if item.get_closest_marker(CLUSTER) is None:
            return "others"
        folder = item.path.parent.name
        return folder if folder in order else CLUSTER

    items.sort(key=lambda item: order.index(kind(item)))


class ByCluster(LoadScopeScheduling):
    """Where several processes share the tests out, one has all of clusters of several nodes, which have the same
    addresses, and one all others that start a cluster: more at a time are more than two cores can bear. The rest goes
    file by file, with its fixtures."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        if not _starts_clusters(path):
            return path
        return STRIKES if Path(path).parent.name in (STRIKES, CAMPAIGN) else CLUSTER


@cache
def _starts_clusters(path: str) -> bool:
    return f"pytest.mark.{CLUSTER}" in (ROOT / path).read_text()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByCluster:
    """For `--numprocesses`."""
    config.option.loadscopereorder = False
    return ByCluster(config, log)
