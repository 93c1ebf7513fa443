"""I5: a checkpoint is there whole or not at all, and where the newest is damaged the one before serves."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from services.contracts import names
from services.contracts.checkpoints import CheckpointManifest
from services.contracts.ids import JobId
from tests.chaos.fits import LONG, epochs, next_recovery, running_trainer, saved
from tests.cluster.attempts import Attempts, kill, wait_until
from tests.servers.ray_nodes import RayNodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

STRIKES = 3
POLL_S = 0.0002


def folder_of(attempts: Attempts, key: str) -> Path:
    """The file or folder of a name in the bucket, which is a folder here."""
    return Path(urlsplit(attempts.bucket_uri).path) / key


def half_saved(attempts: Attempts, job: JobId) -> set[str]:
    """Checkpoints newer than the newest whole one, of which there is an object and no manifest."""
    root, whole, half = folder_of(attempts, names.checkpoints_prefix(job)), 0, dict[str, int]()
    with contextlib.suppress(FileNotFoundError):  # what is collected meanwhile
        for folder in os.listdir(root):
            step = int(folder.rpartition("-s")[2])
            files = os.listdir(root / folder)
            if "manifest.json" in files:
                whole = max(whole, step)
            elif files:
                half[folder] = step
    return {folder for folder, step in half.items() if step > whole}


def freeze(process: psutil.Process) -> None:
    process.suspend()
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, 10)


def kill_while_saving(cluster: RayNodes, attempts: Attempts, job: JobId, driver: subprocess.Popen[bytes]) -> str:
    """Kills the trainer when it has written a checkpoint's object and not its manifest; that checkpoint's folder.

    That is a moment of few milliseconds, so the trainer is stopped first to see whether it was met.
    """
    trainer = running_trainer(cluster, lambda: attempts.log(job))
    while True:
        while not half_saved(attempts, job):
            assert driver.poll() is None, "the fit was over too soon"
            time.sleep(POLL_S)
        freeze(trainer)
        if half := half_saved(attempts, job):
            trainer.kill()
            return half.pop()
        trainer.resume()


def test_killing_a_trainer_while_it_saves_leaves_the_checkpoint_before(
    cluster: RayNodes, attempts: Attempts, images: Path, undisturbed: str
) -> None:
    job = attempts.accept(images, "killed-while-saving", **LONG)
    driver = attempts.start(job)
    wait_until(lambda: saved(attempts, job))
    for strike in range(STRIKES):
        half = kill_while_saving(cluster, attempts, job, driver)
        before = saved(attempts, job)[-1]
        recovery = next_recovery(attempts, job, driver, after=strike)
        assert recovery.epoch == before.epoch, f"{half} was taken for a checkpoint"
    assert driver.wait(240) == 0, attempts.log(job)
    assert attempts.model(job).tail_sha256 == undisturbed


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def object_of(manifest: CheckpointManifest) -> str:
    return manifest.objects["state"].key


def manifest_of(manifest: CheckpointManifest) -> str:
    return names.checkpoint_manifest(manifest.job_id, manifest.attempt, manifest.term, manifest.step)


def stop_all(
    cluster: RayNodes, attempts: Attempts, job: JobId, attempt: int, driver: subprocess.Popen[bytes]
) -> tuple[CheckpointManifest, CheckpointManifest]:
    """Kills the driver and the trainer, which would go on without it; the newest checkpoint and the one before it.

    The attempt has saved by then, and there is one to fall back to.
    """

    def can_fall_back() -> bool:
        found = saved(attempts, job)
        return len(found) > 1 and found[-1].attempt == attempt

    trainer = running_trainer(cluster, lambda: attempts.log(job, attempt))
    wait_until(can_fall_back)
    kill(driver)
    trainer.kill()
    psutil.wait_procs([trainer], 10)
    found = saved(attempts, job)
    return found[-1], found[-2]


def test_a_job_whose_newest_checkpoint_was_damaged_goes_on_from_the_one_before(
    cluster: RayNodes, attempts: Attempts, images: Path, undisturbed: str
) -> None:
    job = attempts.accept(images, "damaged", **LONG)
    damages: list[tuple[Callable[[CheckpointManifest], str], Callable[[Path], None]]] = [
        (object_of, flip_a_bit),
        (object_of, cut_off),
        (manifest_of, cut_off),
    ]
    driver = attempts.start(job)
    wait_until(lambda: epochs(attempts, job))
    for attempt, (which, damage) in enumerate(damages, 2):
        newest, before = stop_all(cluster, attempts, job, attempt - 1, driver)
        damage(folder_of(attempts, which(newest)))
        driver = attempts.start(job, attempt)
        recovery = next_recovery(attempts, job, driver, attempt=attempt)
        assert recovery.epoch == before.epoch, f"not the one before {newest.epoch}, damaged by {damage.__name__}"
    assert driver.wait(240) == 0, attempts.log(job, len(damages) + 1)
    assert attempts.model(job, len(damages) + 1).tail_sha256 == undisturbed
