"""Sums over fixed shards of rows, computed by one process or by several with the same bits.

What a shard gives depends on the shard and the parameters alone, and results are summed in the shards' order by one
process. So who computes which shard, and how many do, changes nothing: workers may come and go between any two sums.

Array axes: P parameter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any, Protocol

import numpy.typing as npt

from ray_cluster.train.adam import Vector32
from ray_cluster.train.lbfgs import Vector


class Quantity(StrEnum):
    GRADIENT = "gradient"
    """A shard gives its loss, accuracy and gradient."""
    QUALITY = "quality"
    """A shard gives its loss and accuracy."""
    LOGITS = "logits"
    """A shard gives its rows' logits."""


@dataclass(frozen=True, slots=True, eq=False)
class ShardTask:
    """What is wanted of every shard of one set of rows."""

    quantity: Quantity
    rows: str
    """Names the set, e.g. a phase."""
    params_P: Vector | Vector32


ShardResult = tuple[npt.NDArray[Any], ...]
Compute = Callable[[ShardTask, int], ShardResult]
"""A task and a shard's number to its result, in this process. Pure."""


class ShardMap(Protocol):
    """How all shards of a task get computed."""

    def __call__(self, task: ShardTask, count: int, compute: Compute) -> list[ShardResult]:
        """The results of shards 0 to `count` - 1, in their order."""
        ...


def compute_here(task: ShardTask, count: int, compute: Compute) -> list[ShardResult]:
    """All in this process."""
    return [compute(task, shard) for shard in range(count)]


def deal(count: int, workers: int) -> list[Sequence[int]]:
    """Shards by worker: runs of neighbours whose lengths differ by one at most, the longer ones first."""
    base, longer = divmod(count, workers)
    bounds = [worker * base + min(worker, longer) for worker in range(workers + 1)]
    return [range(start, end) for start, end in pairwise(bounds)]
