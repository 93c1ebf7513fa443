"""What runs on the cluster as Ray tasks.

They take and give back plain data and are idempotent, so Ray may run one again whenever it loses a node,
and `dispatch` may run one twice at once.
"""

import numpy as np
import numpy.typing as npt
import ray

from ray_cluster.train import known_files
from ray_cluster.train.dispatch import TASK_CPUS
from ray_cluster.train.early_features import EarlyFeatures, inspect_and_compute
from ray_cluster.train.evaluate_network import run_network
from ray_cluster.train.feature_pass import FeatureWork, compute_shard
from ray_cluster.train.features import FeatureIndex
from ray_cluster.train.gathering import Gathering
from ray_cluster.train.here import here
from ray_cluster.train.inspection import Inspected, inspect_files
from ray_cluster.train.listing import ListedFile
from ray_cluster.train.probe import ProbeScore, probe
from ray_cluster.train.probe_sample import ProbeSample
from ray_cluster.train.work import Done, Watch
from ray_cluster.vision import images
from ray_cluster.vision.engines.choice import choose
from services.contracts import names
from services.contracts.datasets import ImageRecord
from services.contracts.ids import DatasetId
from services.contracts.jobs import TrainingJobSpec
from services.contracts.models import EngineChoice, TrunkManifest, TrunkRecipe
from services.runtime.objects import open_store

MAX_RETRIES = 20
"""Of one task, for lost processes and nodes only. Bounded, so that input that kills its process ends the attempt."""


@ray.remote(num_cpus=TASK_CPUS, max_retries=0)
def warm_up_task(bucket_uri: str, others: Gathering) -> None:
    """Leaves a process behind that has loaded what tasks need, and is connected to the bucket. Waits for the others, so
    that they are in processes of their own."""
    import ray_cluster.vision.engines.litert  # noqa: F401, PLC0415 - later tasks load it when they need it

    images.warm_up()
    open_store(bucket_uri).head(names.spare_driver())
    others.gather()


@ray.remote(num_cpus=TASK_CPUS, max_retries=MAX_RETRIES)
def inspect_task(
    bucket_uri: str, source_uri: str, dataset_id: DatasetId, files: list[ListedFile], early: EarlyFeatures | None
) -> Done[list[Inspected]]:
    """`inspect_files` on some node, or `inspect_and_compute`; what it finds is kept for other preflights of the
    dataset."""
    watch = Watch(here())
    with watch.working():
        store, source = open_store(bucket_uri), open_store(source_uri)
        inspected = inspect_and_compute(store, source, files, early) if early else inspect_files(source, files)
        known_files.save(store, dataset_id, inspected)
    return Done(inspected, watch.spans[0])


@ray.remote(num_cpus=TASK_CPUS, max_retries=MAX_RETRIES)
def choose_engine_task(bucket_uri: str, trunks: list[TrunkManifest], gpu: bool) -> Done[EngineChoice]:
    """`choose` on some node, among the engines for its GPU where `gpu` says that the task has reserved some of it."""
    watch = Watch()
    with watch.working():
        chosen = choose(open_store(bucket_uri), trunks, gpu=gpu)
    return Done(chosen, watch.spans[0])


@ray.remote(num_cpus=TASK_CPUS, max_retries=MAX_RETRIES)
def feature_task(
    bucket_uri: str, source_uri: str, trunk: TrunkManifest, engine_name: str, work: FeatureWork
) -> Done[int]:
    """`compute_shard` on some node; how many images it did."""
    watch = Watch(here())
    with watch.working():
        compute_shard(open_store(bucket_uri), open_store(source_uri), trunk, engine_name, work)
    return Done(len(work.images), watch.spans[0])


@ray.remote(num_cpus=TASK_CPUS, max_retries=MAX_RETRIES)
def probe_task(
    bucket_uri: str, trunk: TrunkManifest, engine: str, sample: ProbeSample, spec: TrainingJobSpec
) -> Done[ProbeScore]:
    """`probe` on some node."""
    watch = Watch(here())
    with watch.working():
        score = probe(open_store(bucket_uri), trunk, engine, sample, spec)
    return Done(score, watch.spans[0])


@ray.remote(num_cpus=TASK_CPUS, max_retries=MAX_RETRIES)
def network_task(
    bucket_uri: str,
    source_uri: str,
    trunk: TrunkManifest,
    index: FeatureIndex | None,
    images: list[ImageRecord],
    flatbuffer: bytes,
) -> Done[npt.NDArray[np.float32]]:
    """`run_network` on some node."""
    watch = Watch(here())
    with watch.working():
        probabilities_NK = run_network(open_store(bucket_uri), open_store(source_uri), trunk, index, images, flatbuffer)
    return Done(probabilities_NK, watch.spans[0])


# TensorFlow stays in a process for good: max_calls=1 ends this one with its task and gives the memory back.
@ray.remote(num_cpus=TASK_CPUS, max_retries=MAX_RETRIES, max_calls=1)
def build_trunk_task(bucket_uri: str, recipe: TrunkRecipe) -> Done[TrunkManifest]:
    """`build_trunk` in a process of its own. Seconds to import TensorFlow, and a download for `imagenet`."""
    from ray_cluster.vision.trunk_builder import build_trunk  # noqa: PLC0415 - TensorFlow loads here and nowhere else

    watch = Watch(here())
    with watch.working():
        trunk = build_trunk(open_store(bucket_uri), recipe)
    return Done(trunk, watch.spans[0])


@ray.remote(num_cpus=TASK_CPUS, max_retries=MAX_RETRIES, max_calls=1)
def imagenet_labels_task() -> bytes:
    """`imagenet_labels` in a process of its own."""
    from ray_cluster.vision.weight_loading import imagenet_labels  # noqa: PLC0415 - as above

    return imagenet_labels()
