"""The machine that this task or actor runs on."""

import os
from typing import Any

import ray

from ray_cluster.train.machines import INSTANCE_TYPE_VARIABLE, MARKET_LABEL
from services.contracts.jobs import Machine


def here() -> Machine | None:
    """What this process knows of its machine; None in a process that is no worker of a cluster."""
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    labels: Any = context.get_node_labels()  # its annotation is of another form
    return Machine(
        node_id=context.get_node_id(),
        instance_type=os.environ.get(INSTANCE_TYPE_VARIABLE) or None,
        market=labels.get(MARKET_LABEL),
    )
