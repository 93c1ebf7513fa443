"""Work on the cluster: Ray tasks, and how many of them run at a time.

Tasks take and give back plain data and are idempotent, so Ray may run one again whenever it loses a node.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import ray

from ray_cluster.train.features import FeatureWork, compute_shard
from ray_cluster.train.inspection import Inspected, inspect_files
from ray_cluster.train.listing import ListedFile
from services.contracts.models import TrunkManifest, TrunkRecipe
from services.runtime.objects import open_store

Item = TypeVar("Item")
Result = TypeVar("Result")

Submit = Callable[[Item], ray.ObjectRef[Result]]
"""Starts a task for an item."""

_TASK_CPUS = 0.9
"""A node runs one task for each of its CPUs, and has room for trainers beside them."""

_MAX_RETRIES = 20
"""Of one task, for lost processes and nodes only. Bounded, so that input that kills its process ends the attempt."""


def default_parallelism(cores_per_node: int) -> int:
    """How many single-threaded tasks the cluster runs well at once.

    Its logical CPUs, but no more than `cores_per_node` on each node: a node may declare more CPUs than it has.
    """
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    logical = int(ray.cluster_resources().get("CPU", 1))
    return max(1, min(logical, nodes * cores_per_node))


def run_bounded(submit: Submit[Item, Result], items: Iterable[Item], limit: int) -> Iterator[tuple[Item, Result]]:
    """Runs a task for each item, at most `limit` at a time, and yields results as they come, in no fixed order.

    Waits for as long as the cluster takes: tasks without a node wait for one. The first error is raised and the tasks
    still running are cancelled.
    """
    running: dict[ray.ObjectRef[Result], Item] = {}
    waiting = iter(items)
    try:
        while True:
            while len(running) < limit and (item := next(waiting, None)) is not None:
                running[submit(item)] = item
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            for ref in done:
                item = running.pop(ref)
                yield item, ray.get(ref)
    finally:
        for ref in running:
            ray.cancel(ref)


@ray.remote(num_cpus=_TASK_CPUS, max_retries=_MAX_RETRIES)
def inspect_task(source_uri: str, files: list[ListedFile]) -> list[Inspected]:
    """`inspect_files` on some node."""
    return inspect_files(open_store(source_uri), files)


@ray.remote(num_cpus=_TASK_CPUS, max_retries=_MAX_RETRIES)
def feature_task(bucket_uri: str, source_uri: str, trunk: TrunkManifest, work: FeatureWork) -> int:
    """`compute_shard` on some node; how many images it did."""
    compute_shard(open_store(bucket_uri), open_store(source_uri), trunk, work)
    return len(work.images)


# TensorFlow stays in a process for good: max_calls=1 ends this one with its task and gives the memory back.
@ray.remote(num_cpus=_TASK_CPUS, max_retries=_MAX_RETRIES, max_calls=1)
def build_trunk_task(bucket_uri: str, recipe: TrunkRecipe) -> TrunkManifest:
    """`build_trunk` in a process of its own. Seconds to import TensorFlow, and a download for `imagenet`."""
    from ray_cluster.vision.trunk_builder import build_trunk  # noqa: PLC0415 - TensorFlow loads here and nowhere else

    return build_trunk(open_store(bucket_uri), recipe)


@ray.remote(num_cpus=_TASK_CPUS, max_retries=_MAX_RETRIES, max_calls=1)
def imagenet_labels_task() -> bytes:
    """`imagenet_labels` in a process of its own."""
    from ray_cluster.vision.weight_loading import imagenet_labels  # noqa: PLC0415 - as above

    return imagenet_labels()
