"""Training that takes long enough to be struck, the process that computes it, and what its records say."""

import contextlib
import subprocess
import time
from typing import Any

import psutil

from services.contracts import names
from services.contracts.checkpoints import CheckpointManifest
from services.contracts.errors import NotFound
from services.contracts.ids import JobId
from services.contracts.jobs import EpochMetrics, JobEventType, ProgressRecord, Recovery, Stage
from tests.cluster.attempts import Attempts, wait_until
from tests.servers.ray_nodes import RayNodes, Role

CHECKPOINT_INTERVAL_S = 1
LONG: dict[str, Any] = {
    "train": "top_blocks:1",
    "fine_tuning": {"epochs": 250, "batch_size": 16, "dropout": 0.1, "patience": 1000},
    "augmentation": "light",
    "checkpoint_interval_s": CHECKPOINT_INTERVAL_S,
}
"""For a work's images (`tests.chaos.runner.jobs`): fine-tuning that takes half a minute on an idle machine."""

APPOINTED_WITHIN_S = 120


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


def trainers_in(cluster: RayNodes, method: str) -> list[psutil.Process]:
    """The trainers whose newest call is of this method, as Ray's titles of them say."""
    found: list[psutil.Process] = []
    for process in cluster.processes(Role.TRAINER):
        with contextlib.suppress(psutil.NoSuchProcess):
            if f"Trainer.{method}" in "".join(process.cmdline()):
                found.append(process)
    return found


def running_trainer(cluster: RayNodes) -> psutil.Process:
    """The trainer that computes the only fit: the one that its supervisor waits for."""
    deadline_s = time.monotonic() + APPOINTED_WITHIN_S
    while not (waited_for := trainers_in(cluster, "wait")):
        assert time.monotonic() < deadline_s, "no trainer runs a fit"
        time.sleep(0.05)
    return waited_for[0]
