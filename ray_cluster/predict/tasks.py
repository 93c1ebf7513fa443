"""What a batch prediction runs on the cluster as Ray tasks. See `train/tasks.py`."""

from functools import partial

import ray

from ray_cluster.predict.labelling import label_shard, load_labeller
from ray_cluster.predict.snapshot import Shard
from ray_cluster.serve.model_tails import TailKey
from ray_cluster.train.dispatch import TASK_CPUS
from ray_cluster.train.here import here
from ray_cluster.train.tasks import MAX_RETRIES
from ray_cluster.train.work import Done, Watch
from services.contracts.ids import JobId
from services.contracts.models import TrunkManifest
from services.runtime.objects import open_store


@ray.remote(num_cpus=TASK_CPUS, max_retries=MAX_RETRIES)
def label_task(
    bucket_uri: str,
    source_uri: str,
    job_id: JobId,
    trunk: TrunkManifest,
    engine_name: str,
    model: TailKey,
    top_k: int,
    shard: Shard,
) -> Done[int]:
    """`label_shard` on some node; how many files it had."""
    watch = Watch(here())
    with watch.working():
        store, source = open_store(bucket_uri), open_store(source_uri)
        load = partial(load_labeller, store, trunk, engine_name, model)
        label_shard(store, source, job_id, shard, top_k, load)
    return Done(len(shard.files), watch.spans[0])
