"""Drains a node by hand or before its pod stops: `python -m ray_cluster.spot.drain --deadline-s 110`.

Waits until the node is empty (then its raylet has ended) or the deadline has come. Exit code 0: it is empty; 1: the
deadline came first, or the drain was not accepted before it.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from ray_cluster.spot.ray_node import DrainFailed, NodeNotFound, Wanted, drain, find_node, living_nodes
from ray_cluster.spot.watcher import log_line
from services.contracts.base import utc_now

POLL_S = 0.5

Result = TypeVar("Result")


def drain_and_wait(wanted: Wanted, deadline_s: float, reason: str) -> bool:
    """Drains the node and waits; whether it is empty before `deadline_s` seconds from now. Repeats what fails."""
    ends_at = time.monotonic() + deadline_s
    deadline = utc_now() + timedelta(seconds=deadline_s)
    node = _until(ends_at, lambda: find_node(wanted))
    if node is None:
        return False
    if _until(ends_at, lambda: drain(node, reason, deadline) or node) is None:
        return False
    log_line("spot.draining", node_id=node.node_id, deadline_s=deadline_s)
    while time.monotonic() < ends_at:
        living = _until(ends_at, lambda: living_nodes(node.address))
        if living is not None and node.node_id not in {each.node_id for each in living}:
            return True
        time.sleep(min(POLL_S, max(0.0, ends_at - time.monotonic())))
    return False


def _until(ends_at: float, step: Callable[[], Result]) -> Result | None:
    """The result of the first try that does not fail; None when the time is over."""
    while True:
        try:
            return step()
        except (NodeNotFound, DrainFailed) as error:
            if time.monotonic() + POLL_S > ends_at:
                log_line("spot.drain_failed", error=type(error).__name__, reason=str(error)[:500])
                return None
        time.sleep(POLL_S)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ray_cluster.spot.drain", description="Drains a node and waits until it is empty."
    )
    parser.add_argument("--node-id", help="Ray's id of the node, in hex; unset: this machine's")
    parser.add_argument("--ip", help="the node's address in Ray; unset: this machine's")
    parser.add_argument("--address", help="of the cluster's GCS, host:port; unset: that of this machine's node")
    parser.add_argument("--deadline-s", type=float, default=110.0, help="seconds until the machine goes (default 110)")
    parser.add_argument("--reason", default="maintenance", help="shown in Ray's dashboard")
    given = parser.parse_args(argv)
    empty = drain_and_wait(Wanted(given.address, given.node_id, given.ip), given.deadline_s, given.reason)
    log_line("spot.drained" if empty else "spot.not_empty")
    return 0 if empty else 1


if __name__ == "__main__":
    sys.exit(main())
