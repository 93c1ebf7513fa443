"""Hands tasks to the cluster: how many at a time, where, and again where one takes far too long.

Tasks are idempotent, so one may run twice; who comes first counts.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import ray

from ray_cluster.train import cluster_view
from ray_cluster.train.capacity import LOOK_S, CapacityWatch
from ray_cluster.train.cluster_view import ClusterUnknown
from ray_cluster.train.machines import Place, count_cores
from ray_cluster.train.stragglers import Stragglers
from services.contracts.jobs import Stage

Item = TypeVar("Item")
Result = TypeVar("Result")

Submit = Callable[[Item, Place], ray.ObjectRef[Result]]
"""Starts a task for an item, on a node of a place."""

TASK_CPUS = 0.9
"""A node runs one task for each of its CPUs, and has room for trainers beside them."""

_log = logging.getLogger(__name__)


class Parallelism:
    """How many single-threaded tasks the cluster runs well at once: the cores of the nodes that fit."""

    def __init__(self, cores_per_node: int, fixed: int | None = None) -> None:
        """`fixed` overrides it. A node has `cores_per_node` cores whatever it declares."""
        self._cores_per_node = cores_per_node
        self._fixed = fixed
        self._last = 1

    def count(self, place: Place) -> int:
        """As of now; as before while the head does not answer."""
        if self._fixed is not None:
            return self._fixed
        try:
            self._last = count_cores(cluster_view.look(), self._cores_per_node, place)
        except ClusterUnknown as error:
            _log.warning("cannot count the cluster's cores: %s", error)
        return self._last


@dataclass(eq=False)
class _Run(Generic[Item]):
    """An item, and the tasks that are at it: one, or two where the first takes far too long."""

    item: Item
    tasks: list[ray.ObjectRef[Any]] = field(default_factory=list[ray.ObjectRef[Any]])


def run_bounded(
    submit: Submit[Item, Result],
    items: Iterable[Item],
    parallelism: Parallelism,
    capacity: CapacityWatch,
    stage: Stage,
) -> Iterator[tuple[Item, Result]]:
    """Runs a task for each item, a bounded number at a time, and yields results as they come, in no fixed order.

    Waits for as long as the cluster takes, and reports it: tasks without a node wait for one. Once all have begun, one
    that takes far longer than the others did is begun a second time, on another node where there is one. The first
    error is raised and the tasks still running are cancelled.
    """
    running: dict[ray.ObjectRef[Result], _Run[Item]] = {}
    waiting = iter(items)
    stragglers: Stragglers[ray.ObjectRef[Result]] = Stragglers()

    def begin(run: _Run[Item], place: Place) -> None:
        task = submit(run.item, place)
        run.tasks.append(task)
        running[task] = run
        stragglers.began(task)

    def give_up(task: ray.ObjectRef[Result]) -> None:
        del running[task]
        stragglers.dropped(task)
        ray.cancel(task)

    try:
        while True:
            limit = parallelism.count(capacity.place)
            while len(running) < limit and (item := next(waiting, None)) is not None:
                begin(_Run(item), capacity.place)
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_S)
            if done:
                capacity.placed(stage)
            elif capacity.look(stage, TASK_CPUS):
                unfinished = {id(run): run.item for run in running.values()}
                for task in list(running):
                    give_up(task)
                waiting = itertools.chain(unfinished.values(), waiting)
            elif len(running) < limit:
                for task in stragglers.late():
                    if len(running[task].tasks) == 1 and (node_id := cluster_view.node_of(task)) is not None:
                        _log.warning("a task takes far longer than the others, on node %s: begun again", node_id)
                        begin(running[task], _away_from(node_id, capacity))
            for task in done:
                run = running.pop(task)
                stragglers.ended(task)
                for other in run.tasks:
                    if other in running:
                        give_up(other)
                yield run.item, ray.get(task)
    finally:
        for task in running:
            ray.cancel(task)


def _away_from(node_id: str, capacity: CapacityWatch) -> Place:
    """The place without a node, unless it has no other."""
    others = [each for each in capacity.nodes(TASK_CPUS) if each != node_id]
    return replace(capacity.place, avoided_node=node_id) if others else capacity.place


def run_one(
    submit: Callable[[Place], "ray.ObjectRef[Result]"],
    begun: tuple["ray.ObjectRef[Result]", Place],
    capacity: CapacityWatch,
    stage: Stage,
) -> Result:
    """The result of a task that was begun at a place, or that is begun anew where another place counts by now."""
    ref, place = begun
    while True:
        done, _ = ray.wait([ref], timeout=LOOK_S)
        if done:
            capacity.placed(stage)
            return ray.get(ref)
        capacity.look(stage, TASK_CPUS)
        if place != capacity.place:
            ray.cancel(ref)
            place = capacity.place
            ref = submit(place)
