"""What an export runs on the cluster as a Ray task. See `train/tasks.py`."""

import ray

from ray_cluster.train.dispatch import TASK_CPUS
from services.contracts.exports import ExportFormat
from services.contracts.models import ModelManifest
from services.runtime.objects import open_store

MAX_RETRIES = 3
"""For lost processes and nodes only. Whoever wants the archive asks again, and then another build begins."""


# TensorFlow stays in a process for good: max_calls=1 ends this one with its task and gives the memory back.
@ray.remote(num_cpus=TASK_CPUS, max_retries=MAX_RETRIES, max_calls=1)
def export_task(bucket_uri: str, model: ModelManifest, form: ExportFormat) -> None:
    """`archive.export` in a process of its own."""
    from ray_cluster.export.archive import export  # noqa: PLC0415 - TensorFlow loads here and nowhere else

    export(open_store(bucket_uri), model, form)
