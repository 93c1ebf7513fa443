"""Finding this machine's node, and a head that is away."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_cluster.spot.ray_node import DrainFailed, NodeNotFound, RayNode, Wanted, drain, find_node, living_nodes
from ray_cluster.spot.watcher import WatcherSettings
from services.local.ports import free_ports

ROOT = Path(__file__).parents[3]
IDS = ("ab" * 28, "cd" * 28)
HEAD = "192.0.2.77:6379"
"""An address of no machine, so that no real node is meant."""


@pytest.fixture
def raylets() -> Iterator[list[RayNode]]:
    """Two processes that look like raylets of one cluster."""
    nodes = [RayNode(node_id, HEAD, f"192.0.2.{number}") for number, node_id in enumerate(IDS, start=1)]
    processes: list[subprocess.Popen[bytes]] = []
    for node in nodes:
        flags = [f"--node_id={node.node_id}", f"--gcs-address={HEAD}", f"--node_ip_address={node.ip}", "--head"]
        command = ["/somewhere/raylet", "-c", "print(flush=True); import time; time.sleep(600)", *flags]
        processes.append(subprocess.Popen(command, executable=sys.executable, stdout=subprocess.PIPE))
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    yield nodes
    for process in processes:
        process.kill()
        process.communicate()


def test_a_raylet_of_this_machine_is_found(raylets: list[RayNode]) -> None:
    first, second = raylets
    assert find_node(Wanted(node_id=first.node_id)) == first
    assert find_node(Wanted(HEAD, ip=second.ip)) == second


def test_several_raylets_are_not_guessed_among(raylets: list[RayNode]) -> None:
    assert len(raylets) == 2
    with pytest.raises(NodeNotFound, match="2 Ray nodes"):
        find_node(Wanted(HEAD))


def test_no_raylet() -> None:
    with pytest.raises(NodeNotFound, match="0 Ray nodes"):
        find_node(Wanted(HEAD))


def test_a_head_that_is_away_is_told() -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(DrainFailed):
        living_nodes(address)
    with pytest.raises(DrainFailed):
        drain(RayNode(IDS[0], address, "192.0.2.1"), "spot", None)


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs/spot.md").read_text()
    assert [name for name in WatcherSettings.model_fields if f"`REKINDLE_SPOT_{name.upper()}`" not in text] == []
