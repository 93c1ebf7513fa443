"""Fits that take long enough to be struck, the process that computes one, and what their records say."""

import contextlib
import subprocess
import time

import psutil

from services.contracts import names
from services.contracts.checkpoints import CheckpointManifest
from services.contracts.errors import NotFound
from services.contracts.ids import JobId
from services.contracts.jobs import EpochMetrics, JobEventType, ProgressRecord, Recovery
from tests.cluster.attempts import Attempts, wait_until
from tests.servers.ray_nodes import RayNodes, Role

CHECKPOINT_INTERVAL_S = 1
ENDLESS = {"weight_decay": 0, "augmentation": "light", "epochs": 10_000, "checkpoint_interval_s": CHECKPOINT_INTERVAL_S}
"""Without a penalty on labels that say nothing, L-BFGS goes on for hundreds of epochs."""

APPOINTED_WITHIN_S = 120


def of_type(attempts: Attempts, job: JobId, kind: JobEventType, attempt: int = 1) -> list[ProgressRecord]:
    return [record for record in attempts.records(job, attempt) if record.type is kind]


def epochs(attempts: Attempts, job: JobId, attempt: int = 1) -> list[int]:
    """Those that have a record, in the order in which they were done."""
    return [
        EpochMetrics.model_validate(each.data).epoch for each in of_type(attempts, job, JobEventType.EPOCH, attempt)
    ]


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
    """The manifests of the job's checkpoints, the newest last."""
    store, found = attempts.store, list[CheckpointManifest]()
    for info in store.list(names.checkpoints_prefix(job)):
        if info.key.endswith("/manifest.json"):
            try:
                found.append(CheckpointManifest.model_validate_json(store.get(info.key)))
            except NotFound:  # it was collected meanwhile
                continue
    return sorted(found, key=lambda each: (each.step, each.attempt, each.term))


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
