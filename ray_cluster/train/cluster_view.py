"""Asks Ray's head which nodes there are and what it has not placed. For drivers, tasks and actors of the cluster."""

import logging
import math
from typing import Any

import ray
from ray.core.generated import autoscaler_pb2, common_pb2
from ray.exceptions import RayError
from ray.experimental.internal_kv import internal_kv_get_gcs_client

from ray_cluster.train.machines import ClusterView, NodeView, Unplaced
from services.contracts.errors import ClusterUnavailable

ANSWER_S = 2.0
"""One look takes 2 ms; while the head is away, this long."""
_MAX_REASON_CHARACTERS = 200
_log = logging.getLogger(__name__)

# Names that generated code makes at run time.
_RUNNING: int = autoscaler_pb2.NodeStatus.RUNNING  # pyright: ignore[reportAttributeAccessIssue]
_IDLE: int = autoscaler_pb2.NodeStatus.IDLE  # pyright: ignore[reportAttributeAccessIssue]
_DRAINING: int = autoscaler_pb2.NodeStatus.DRAINING  # pyright: ignore[reportAttributeAccessIssue]
_IN: int = common_pb2.LabelSelectorOperator.LABEL_OPERATOR_IN  # pyright: ignore[reportAttributeAccessIssue]


class ClusterUnknown(ClusterUnavailable):
    """The head did not say; nothing follows from that."""


def look() -> ClusterView:
    """The living nodes, what is unplaced, and what the autoscaler is at. One call to the head.

    Raises `ClusterUnknown` when it does not answer within `ANSWER_S`.
    """
    client: Any = internal_kv_get_gcs_client()
    reply: Any = autoscaler_pb2.GetClusterStatusReply()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        reply.ParseFromString(client.get_cluster_status(timeout_s=ANSWER_S))
    except RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ClusterUnknown(f"the Ray head does not say which nodes there are: {reason}") from error
    return read_status(reply)


def read_status(reply: Any) -> ClusterView:
    """Ray's `GetClusterStatusReply`, as far as it matters here."""
    state, scaling = reply.cluster_resource_state, reply.autoscaling_state
    nodes = [
        NodeView(
            node_id=node.node_id.hex(),
            labels=dict(node.labels),
            total_cpus=node.total_resources.get("CPU", 0.0),
            free_cpus=node.available_resources.get("CPU", 0.0),
            draining=node.status == _DRAINING,
            total_gpus=node.total_resources.get("GPU", 0.0),
        )
        for node in state.node_states
        if node.status in (_RUNNING, _IDLE, _DRAINING)
    ]
    unplaced = [
        Unplaced(each.request.resources_bundle.get("CPU", 0.0), _accepted(each.request), each.count)
        for each in state.pending_resource_requests
    ]
    return ClusterView(
        nodes=nodes,
        unplaced=unplaced,
        starting=[each.ray_node_type_name for each in scaling.pending_instance_requests],
        refused={
            each.ray_node_type_name: each.reason[:_MAX_REASON_CHARACTERS] for each in scaling.failed_instance_requests
        },
    )


def _accepted(request: Any) -> dict[str, tuple[str, ...]]:
    return {
        constraint.label_key: tuple(sorted(constraint.label_values))
        for selector in request.label_selectors
        for constraint in selector.label_constraints
        if constraint.operator == _IN
    }


def runs_a_task() -> bool:
    """Whether a task of this driver runs now. Ray learns of it a second late.

    Raises `ClusterUnknown` when the dashboard does not answer.
    """
    return bool(_running_tasks([("type", "=", "NORMAL_TASK")]))


def node_of(task: "ray.ObjectRef[Any]") -> str | None:
    """The id of the node on which a task of this driver runs; None where it waits for one, or nobody knows."""
    try:
        found = _running_tasks([("task_id", "=", task.task_id().hex())])
    except ClusterUnknown as error:
        _log.warning("cannot tell where a task runs: %s", error)
        return None
    return found[0].node_id if found else None


def _running_tasks(filters: list[Any]) -> list[Any]:
    """One of this driver's at most. Raises `ClusterUnknown`."""
    # It takes a fifth of the driver's start to import, and most attempts do without.
    from ray.util.state import list_tasks  # noqa: PLC0415
    from ray.util.state.exception import RayStateApiException  # noqa: PLC0415

    mine: list[Any] = [("job_id", "=", ray.get_runtime_context().get_job_id()), ("state", "=", "RUNNING")]
    try:
        return list_tasks(filters=mine + filters, limit=1, timeout=math.ceil(ANSWER_S))
    except (RayError, RayStateApiException, OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ClusterUnknown(f"the dashboard does not say which tasks run: {reason}") from error
