"""Which nodes of the cluster are about to go, for processes that are drivers, tasks or actors in it."""

from datetime import UTC, datetime
from typing import Any

import ray
from ray.exceptions import RayError
from ray.experimental.internal_kv import internal_kv_get_gcs_client

from services.contracts.errors import ClusterUnavailable

LOOK_TIMEOUT_S = 2.0
"""One look takes 1 ms; while the head is away, this long."""


class DrainsUnknown(ClusterUnavailable):
    """The head did not say; nodes may be draining."""


def draining_nodes(timeout_s: float = LOOK_TIMEOUT_S) -> dict[str, datetime | None]:
    """The nodes that take no new work and will go: id in hex, and when; None for no known deadline.

    A node that is gone is no longer draining. One call to the head, from any thread.

    Raises `DrainsUnknown` when the head does not answer within `timeout_s`, or this process is in no cluster.
    """
    client = _gcs_client()
    try:
        deadlines_ms: dict[str, int] = client.get_draining_nodes(timeout=timeout_s)
    except RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise DrainsUnknown(f"the Ray head does not say which nodes are draining: {reason}") from error
    return {node_id: read_deadline(deadline_ms) for node_id, deadline_ms in deadlines_ms.items()}


def my_node_id() -> str:
    """The id in hex of the node that this process runs on.

    Raises `DrainsUnknown` where this process belongs to no cluster.
    """
    _gcs_client()
    return ray.get_runtime_context().get_node_id()


def read_deadline(unix_ms: int) -> datetime | None:
    """Ray's own form of a deadline: milliseconds of Unix time, 0 for none."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC) if unix_ms > 0 else None


def _gcs_client() -> Any:
    if not ray.is_initialized():
        raise DrainsUnknown("this process is not part of a Ray cluster")
    return internal_kv_get_gcs_client()
