"""The other trainers that compute shards for a leader. They may come and go at any moment.

A helper holds nothing that would be missed: what one does not answer, the leader computes itself, to the same bits.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from ray_cluster.train.shards import Compute, ShardResult, ShardTask, compute_here, deal

ANSWER_S = 60.0
"""How long a helper may take for its shards; then it is left out, though it may live."""

_log = logging.getLogger(__name__)


class Crew:
    """A leader's helpers, as its `ShardMap`. Whoever changes them may do so at any time, from any thread."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._helpers: list[Any] = []
        self._lock = threading.Lock()

    def set(self, helpers: Sequence[Any]) -> None:
        """These trainers help from the next sum on. Each has loaded the job (`Trainer.assist`)."""
        with self._lock:
            self._helpers = list(helpers)

    def __call__(self, task: ShardTask, count: int, compute: Compute) -> list[ShardResult]:
        """The leader computes the first shards, each helper some of the others."""
        with self._lock:
            helpers = self._helpers[: count - 1]
        if not helpers:
            return compute_here(task, count, compute)
        own, *others = deal(count, len(helpers) + 1)
        params = ray.put(task.params_P)
        asked = [
            (helper, shards, helper.compute_shards.remote(self._work, task.quantity, task.rows, params, list(shards)))
            for helper, shards in zip(helpers, others, strict=True)
        ]
        results = [compute(task, shard) for shard in own]
        for helper, shards, answer in asked:
            try:
                results.extend(ray.get(answer, timeout=ANSWER_S))
            except RayError as error:
                _log.warning("going on without a trainer: %s", str(error).partition("\n")[0])
                self._leave_out(helper)
                results.extend(compute(task, shard) for shard in shards)
        return results

    def _leave_out(self, helper: Any) -> None:
        with self._lock:
            self._helpers = [each for each in self._helpers if each is not helper]
