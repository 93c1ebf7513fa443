"""Finding this machine's Ray node and draining it, from a process that is no part of the cluster.

Every call makes a connection of its own: Ray's client ends its process when a connection is lost for a minute, and a
watcher must outlive the head.
"""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psutil
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.core.generated import autoscaler_pb2, gcs_pb2
from ray.exceptions import RayError

RPC_TIMEOUT_S = 3.0

# Names that generated code makes at run time.
_ALIVE: int = gcs_pb2.GcsNodeInfo.GcsNodeState.ALIVE  # pyright: ignore[reportAttributeAccessIssue]
_PREEMPTION: int = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION  # pyright: ignore[reportAttributeAccessIssue]


class NodeNotFound(Exception):
    """No Ray node here, or more than one. It may come up yet."""


class DrainFailed(Exception):
    """The head could not be reached or did not accept; try again."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is known of the node; None: found by the raylet that runs on this machine."""

    address: str | None = None
    """Of the GCS, `host:port`."""
    node_id: str | None = None
    """In hex."""
    ip: str | None = None


@dataclass(frozen=True, slots=True)
class RayNode:
    """A node, and where its cluster's head is."""

    node_id: str
    address: str
    ip: str


def local_nodes() -> list[RayNode]:
    """The nodes whose raylets run on this machine, by their command lines."""
    return list(_local_nodes())


def _local_nodes() -> Iterator[RayNode]:
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if command and command[0].endswith("/raylet"):
            flags = dict(part.lstrip("-").split("=", 1) for part in command[1:] if "=" in part)
            if {"node_id", "gcs-address", "node_ip_address"} <= flags.keys():
                yield RayNode(flags["node_id"], flags["gcs-address"], flags["node_ip_address"])


def find_node(wanted: Wanted) -> RayNode:
    """The node: among those on this machine, else, where its head's address is given, among the cluster's.

    Raises:
        NodeNotFound: none or several fit.
        DrainFailed: the head does not answer.
    """
    here = [node for node in local_nodes() if _fits(node, wanted)]
    if len(here) == 1:
        return here[0]
    if wanted.address and (wanted.node_id or wanted.ip):
        there = [node for node in living_nodes(wanted.address) if _fits(node, wanted)]
        if len(there) == 1:
            return there[0]
        raise NodeNotFound(f"{len(there)} living nodes of the cluster at {wanted.address} are {_describe(wanted)}")
    raise NodeNotFound(f"{len(here)} Ray nodes on this machine are {_describe(wanted)}")


def living_nodes(address: str) -> list[RayNode]:
    """The cluster's nodes that are alive. Raises `DrainFailed` when the head does not answer."""
    try:
        infos = _connect(address).get_all_node_info(timeout=RPC_TIMEOUT_S, state_filter=_ALIVE)
    except (RayError, RuntimeError, OSError) as error:
        raise DrainFailed(f"the Ray head at {address} does not answer: {error}") from error
    return [RayNode(node_id.hex(), address, info.node_manager_address) for node_id, info in infos.items()]


def drain(node: RayNode, reason: str, deadline: datetime | None) -> None:
    """Asks the head to give the node nothing new, because it will go at `deadline`. Repeating it is harmless.

    A node without work ends at once; one with work when that has moved away. Nothing is killed at the deadline.

    Raises `DrainFailed` when the head does not answer or does not accept.
    """
    deadline_ms = int(deadline.timestamp() * 1000) if deadline else 0
    try:
        accepted, why = _connect(node.address).drain_node(
            node.node_id,
            _PREEMPTION,
            reason,
            deadline_ms,
            timeout=RPC_TIMEOUT_S,
        )
    except (RayError, RuntimeError, OSError) as error:
        raise DrainFailed(f"the Ray head at {node.address} does not answer: {error}") from error
    if not accepted:
        raise DrainFailed(f"the Ray head at {node.address} does not accept: {why}")


def _connect(address: str) -> Any:
    """Raises `OSError` at once where nobody listens; Ray's client alone would wait for 40 s."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=RPC_TIMEOUT_S).close()
    return GcsClient(address=address)


def _fits(node: RayNode, wanted: Wanted) -> bool:
    return (
        wanted.address in (None, node.address)
        and wanted.node_id in (None, node.node_id)
        and wanted.ip in (None, node.ip)
    )


def _describe(wanted: Wanted) -> str:
    known = {"id": wanted.node_id, "address": wanted.ip, "head": wanted.address}
    return ", ".join(f"{name} {value}" for name, value in known.items() if value) or "running"
