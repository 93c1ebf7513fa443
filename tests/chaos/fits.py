"""Training that takes long enough to be struck, the process that computes it, and what its records say."""

import re
import subprocess
from collections.abc import Callable
from typing import Any

import psutil

from services.contracts import names
from services.contracts.checkpoints import CheckpointManifest
from services.contracts.errors import NotFound
from services.contracts.ids import JobId
from services.contracts.jobs import EpochMetrics, JobEventType, ProgressRecord, Recovery, Stage
from tests.cluster.attempts import Attempts, wait_until
from tests.servers.ray_nodes import RayNodes

CHECKPOINT_INTERVAL_S = 1
LONG: dict[str, Any] = {
    "train": "top_blocks:1",
    "fine_tuning": {"epochs": 250, "batch_size": 16, "dropout": 0.1, "patience": 1000},
    "augmentation": "light",
    "checkpoint_interval_s": CHECKPOINT_INTERVAL_S,
}
"""For a work's images (`tests.chaos.runner.jobs`): fine-tuning that takes half a minute on an idle machine."""

APPOINTED_WITHIN_S = 120
_APPOINTED = re.compile(r"the fit (?:goes to|runs in) (trainer-[\w.-]+)")
_HELPING = re.compile(r"(\d+) trainers help")


def of_type(attempts: Attempts, job: JobId, kind: JobEventType, attempt: int = 1) -> list[ProgressRecord]:
    return [record for record in attempts.records(job, attempt) if record.type is kind]


def epochs(attempts: Attempts, job: JobId, attempt: int = 1) -> list[int]:
    """Those of fine-tuning that have a record, in the order in which they were done."""
    return [EpochMetrics.model_validate(each.data).epoch for each in epoch_records(attempts, job, attempt)]


def epoch_records(attempts: Attempts, job: JobId, attempt: int = 1) -> list[ProgressRecord]:
    """Fine-tuning's."""
    return [each for each in of_type(attempts, job, JobEventType.EPOCH, attempt) if each.stage is Stage.FINE_TUNE]


def recoveries(attempts: Attempts, job: JobId, attempt: int = 1) -> list[Recovery]:
    return [Recovery.model_validate(each.data) for each in of_type(attempts, job, JobEventType.RECOVERY, attempt)]


def next_recovery(
    attempts: Attempts, job: JobId, driver: subprocess.Popen[bytes], *, attempt: int = 1, after: int = 0
) -> Recovery:
    """The attempt's recovery number `after`, counted from 0, as soon as it is there."""
    wait_until(lambda: len(recoveries(attempts, job, attempt)) > after or driver.poll() is not None)
    found = recoveries(attempts, job, attempt)
    assert len(found) == after + 1, f"{len(found)} recoveries, exit code {driver.poll()}: {attempts.log(job, attempt)}"
    return found[after]


def saved(attempts: Attempts, job: JobId) -> list[CheckpointManifest]:
    """The manifests of fine-tuning's checkpoints, the newest last."""
    store, found = attempts.store, list[CheckpointManifest]()
    for info in store.list(names.checkpoints_prefix(job)):
        if info.key.endswith("/manifest.json"):
            try:
                found.append(CheckpointManifest.model_validate_json(store.get(info.key)))
            except NotFound:  # it was collected meanwhile
                continue
    tuned = [each for each in found if each.position.get("stage") == Stage.FINE_TUNE]
    return sorted(tuned, key=lambda each: (each.step, each.attempt, each.term))


def versions(attempts: Attempts, model_name: str) -> list[str]:
    """Folders of the model's published versions."""
    listed = attempts.store.list(names.model_prefix(model_name))
    return [info.key.split("/")[-2] for info in listed if info.key.endswith("/model.json")]


def running_trainer(cluster: RayNodes, log: Callable[[], str]) -> psutil.Process:
    """The trainer that computes a job's fit: the one that the job's log named last."""
    found: list[psutil.Process] = []

    def look() -> bool:
        named = _APPOINTED.findall(log())
        pid = cluster.actor_pid(named[-1]) if named else None
        found[:] = [] if pid is None else [psutil.Process(pid)]
        return bool(found)

    wait_until(look, APPOINTED_WITHIN_S)
    return found[0]


def helper_counts(log: str) -> list[int]:
    """How many trainers helped, each time that it changed."""
    return [int(count) for count in _HELPING.findall(log)]
