"""Drains a node by hand or before its pod stops: `python -m ray_cluster.spot.drain --deadline-s 110`.

Waits until the node is empty (then its raylet has ended) or the deadline has come. Exit code 0: it is empty; 1: the
deadline came first, or the drain was not accepted before it. With `--absent-is-empty`, as in the `preStop` hook of a
pod whose Ray may have ended already, no node at all is an empty one.
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


def drain_and_wait(wanted: Wanted, deadline_s: float, reason: str, *, absent_is_empty: bool = False) -> bool:
    """Drains the node and waits; whether it is empty before `deadline_s` seconds from now. Repeats what fails.

    With `absent_is_empty` a node that is not there is not waited for: it has no work.
    """
    ends_at = time.monotonic() + deadline_s
    deadline = utc_now() + timedelta(seconds=deadline_s)
    if absent_is_empty and _is_absent(wanted):
        return True
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


def _is_absent(wanted: Wanted) -> bool:
    try:
        find_node(wanted)
    except NodeNotFound as error:
        log_line("spot.no_node", reason=str(error))
        return True
    except DrainFailed:
        return False  # the head, which would know, does not answer
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


def build_parser() -> argparse.ArgumentParser:
    """Of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m ray_cluster.spot.drain", description="Drains a node and waits until it is empty."
    )
    parser.add_argument("--node-id", help="Ray's id of the node, in hex; unset: this machine's")
    parser.add_argument("--ip", help="the node's address in Ray; unset: this machine's")
    parser.add_argument("--address", help="of the cluster's GCS, host:port; unset: that of this machine's node")
    parser.add_argument("--deadline-s", type=float, default=110.0, help="seconds until the machine goes (default 110)")
    parser.add_argument("--reason", default="maintenance", help="shown in Ray's dashboard")
    parser.add_argument(
        "--absent-is-empty", action="store_true", help="where no such node runs, end at once with exit code 0"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    given = build_parser().parse_args(argv)
    wanted = Wanted(given.address, given.node_id, given.ip)
    empty = drain_and_wait(wanted, given.deadline_s, given.reason, absent_is_empty=given.absent_is_empty)
    log_line("spot.drained" if empty else "spot.not_empty")
    return 0 if empty else 1


if __name__ == "__main__":
    sys.exit(main())
