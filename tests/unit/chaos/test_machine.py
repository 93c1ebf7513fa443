"""The machines that chaos freezes and kills, as a whole and whatever their processes are doing."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.servers.ray_nodes import Node, RayNodes

WITHIN_S = 20
IN_VFORK = "import ctypes, time; ctypes.PyDLL(None).vfork(); time.sleep(600)"
"""The child sleeps before it begins a program, and until then its parent sleeps in the kernel."""
IN_A_LOOP = "while True: pass"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RayNodes]:
    """Without Ray."""
    cluster = RayNodes(dict(os.environ), tmp_path, 0, 0, persistent_head=False)
    yield cluster
    cluster.close()


@pytest.fixture
def node(cluster: RayNodes) -> Node:
    return cluster.add_machine({})


def run(node: Node, code: str) -> psutil.Process:
    return node.start([sys.executable, "-c", code])


def wait_until(status: str, process: psutil.Process) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while process.status() != status:
        assert time.monotonic() < deadline_s, process.status()
        time.sleep(0.01)


def used_s(process: psutil.Process) -> float:
    return process.cpu_times().user


def test_a_frozen_machine_stands_still_and_goes_on_when_woken(cluster: RayNodes, node: Node) -> None:
    busy = run(node, IN_A_LOOP)
    wait_until(psutil.STATUS_RUNNING, busy)
    cluster.freeze_node(node)
    before_s = used_s(busy)
    time.sleep(0.2)
    assert used_s(busy) == before_s
    cluster.wake_node(node)
    deadline_s = time.monotonic() + WITHIN_S
    while used_s(busy) == before_s:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.mark.timeout(60)
def test_it_freezes_and_goes_while_a_process_waits_for_its_childs_program(cluster: RayNodes, node: Node) -> None:
    parent = run(node, IN_VFORK)
    wait_until(psutil.STATUS_DISK_SLEEP, parent)
    everything = node.processes()
    assert len(everything) == 2
    cluster.freeze_node(node)
    cluster.wake_node(node)
    cluster.kill_node(node)
    assert not [process for process in everything if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
