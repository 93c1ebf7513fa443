"""Work on the cluster: Ray tasks, and how many of them run at a time.

Tasks take and give back plain data and are idempotent, so Ray may run one again whenever it loses a node.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import ray

from ray_cluster.train import cluster_view, known_files
from ray_cluster.train.capacity import LOOK_S, CapacityWatch
from ray_cluster.train.cluster_view import ClusterUnknown
from ray_cluster.train.evaluate_network import run_network
from ray_cluster.train.features import FeatureIndex, FeatureWork, compute_shard
from ray_cluster.train.inspection import Inspected, inspect_files
from ray_cluster.train.listing import ListedFile
from ray_cluster.train.machines import Place, count_cores
from ray_cluster.train.work import Done, Watch
from services.contracts.datasets import ImageRecord
from services.contracts.ids import DatasetId
from services.contracts.jobs import Stage
from services.contracts.models import TrunkManifest, TrunkRecipe
from services.runtime.objects import open_store

Item = TypeVar("Item")
Result = TypeVar("Result")

Submit = Callable[[Item, Place], ray.ObjectRef[Result]]
"""Starts a task for an item, on a node of a place."""

TASK_CPUS = 0.9
"""A node runs one task for each of its CPUs, and has room for trainers beside them."""

_log = logging.getLogger(__name__)

_MAX_RETRIES = 20
"""Of one task, for lost processes and nodes only. Bounded, so that input that kills its process ends the attempt."""


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


def run_bounded(
    submit: Submit[Item, Result],
    items: Iterable[Item],
    parallelism: Parallelism,
    capacity: CapacityWatch,
    stage: Stage,
) -> Iterator[tuple[Item, Result]]:
    """Runs a task for each item, a bounded number at a time, and yields results as they come, in no fixed order.

    Waits for as long as the cluster takes, and reports it: tasks without a node wait for one. The first error is raised
    and the tasks still running are cancelled.
    """
    running: dict[ray.ObjectRef[Result], Item] = {}
    waiting = iter(items)
    try:
        while True:
            limit = parallelism.count(capacity.place)
            while len(running) < limit and (item := next(waiting, None)) is not None:
                running[submit(item, capacity.place)] = item
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_S)
            if done:
                capacity.placed(stage)
            elif capacity.look(stage, TASK_CPUS):
                given_up, running = running, {}
                for ref in given_up:
                    ray.cancel(ref)
                waiting = itertools.chain(given_up.values(), waiting)
            for ref in done:
                item = running.pop(ref)
                yield item, ray.get(ref)
    finally:
        for ref in running:
            ray.cancel(ref)


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


@ray.remote(num_cpus=TASK_CPUS, max_retries=_MAX_RETRIES)
def inspect_task(
    bucket_uri: str, source_uri: str, dataset_id: DatasetId, files: list[ListedFile]
) -> Done[list[Inspected]]:
    """`inspect_files` on some node; what it finds is kept for other preflights of the dataset."""
    watch = Watch()
    with watch.working():
        inspected = inspect_files(open_store(source_uri), files)
        known_files.save(open_store(bucket_uri), dataset_id, inspected)
    return Done(inspected, watch.spans[0])


@ray.remote(num_cpus=TASK_CPUS, max_retries=_MAX_RETRIES)
def feature_task(bucket_uri: str, source_uri: str, trunk: TrunkManifest, work: FeatureWork) -> Done[int]:
    """`compute_shard` on some node; how many images it did."""
    watch = Watch()
    with watch.working():
        compute_shard(open_store(bucket_uri), open_store(source_uri), trunk, work)
    return Done(len(work.images), watch.spans[0])


@ray.remote(num_cpus=TASK_CPUS, max_retries=_MAX_RETRIES)
def network_task(
    bucket_uri: str,
    source_uri: str,
    trunk: TrunkManifest,
    index: FeatureIndex | None,
    images: list[ImageRecord],
    flatbuffer: bytes,
) -> Done[npt.NDArray[np.float32]]:
    """`run_network` on some node."""
    watch = Watch()
    with watch.working():
        probabilities_NK = run_network(open_store(bucket_uri), open_store(source_uri), trunk, index, images, flatbuffer)
    return Done(probabilities_NK, watch.spans[0])


# TensorFlow stays in a process for good: max_calls=1 ends this one with its task and gives the memory back.
@ray.remote(num_cpus=TASK_CPUS, max_retries=_MAX_RETRIES, max_calls=1)
def build_trunk_task(bucket_uri: str, recipe: TrunkRecipe) -> Done[TrunkManifest]:
    """`build_trunk` in a process of its own. Seconds to import TensorFlow, and a download for `imagenet`."""
    from ray_cluster.vision.trunk_builder import build_trunk  # noqa: PLC0415 - TensorFlow loads here and nowhere else

    watch = Watch()
    with watch.working():
        trunk = build_trunk(open_store(bucket_uri), recipe)
    return Done(trunk, watch.spans[0])


@ray.remote(num_cpus=TASK_CPUS, max_retries=_MAX_RETRIES, max_calls=1)
def imagenet_labels_task() -> bytes:
    """`imagenet_labels` in a process of its own."""
    from ray_cluster.vision.weight_loading import imagenet_labels  # noqa: PLC0415 - as above

    return imagenet_labels()
