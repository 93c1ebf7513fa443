"""Batch predictions whose processes are killed: each image is in the results once, and the bytes are the same."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from ray_cluster.predict.snapshot import SHARD_FILES
from services.contracts import names
from services.contracts.ids import JobId
from services.contracts.jobs import Stage
from services.contracts.models import ModelManifest
from services.runtime.objects import ObjectStore
from tests.cluster.attempts import Attempts, kill, wait_until
from tests.servers.ray_nodes import RayNodes, Role

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SHARDS = 12
FILES = (SHARDS - 1) * SHARD_FILES + 9
DISTINCT = 32
SIDE_PX = 512
"""A shard takes about a second of one core."""


@pytest.fixture(scope="module")
def model(attempts: Attempts, images: Path) -> ModelManifest:
    job = attempts.accept(images, "labels", epochs=3)
    assert attempts.run(job) == 0, attempts.log(job)
    return attempts.model(job)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many files of few distinct pictures, and some that cannot be used."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(FILES):
        path, first = folder / f"{number:05d}.jpg", folder / f"{number % DISTINCT:05d}.jpg"
        if number % 500 == 499:
            path.write_bytes(b"broken")
        elif number < DISTINCT:
            small = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(small).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(path)
        else:
            path.hardlink_to(first)
    return folder


@pytest.fixture(scope="module")
def undisturbed(attempts: Attempts, photos: Path, model: ModelManifest) -> list[str]:
    """The SHA-256 of the results that nothing happened to."""
    job = attempts.accept_prediction(photos, model, top_k=2)
    assert attempts.run(job) == 0, attempts.log(job)
    return hashes(attempts, job)


def hashes(attempts: Attempts, job: JobId, attempt: int = 1) -> list[str]:
    return [ref.sha256 for ref in attempts.predicted(job, attempt).files]


def shards(store: ObjectStore, job: JobId) -> dict[str, str]:
    """ETags of the shards that are labelled."""
    return {info.key: info.etag for info in store.list(names.prediction_shards(job))}


def paths(attempts: Attempts, job: JobId, attempt: int) -> list[str]:
    """Of all files in the results, as often as they are in them."""
    result = attempts.predicted(job, attempt)
    refs = (result.predictions_jsonl, result.quarantine_jsonl)
    return [json.loads(line)["path"] for ref in refs for line in attempts.store.get(ref.key).decode().splitlines()]


def working(cluster: RayNodes) -> psutil.Process:
    """A process that labels a shard."""
    found: list[psutil.Process] = []

    def look() -> bool:
        found[:] = cluster.processes(Role.LABELLER)
        return bool(found)

    wait_until(look)
    return found[0]


def test_whatever_is_killed_each_image_is_there_once(
    cluster: RayNodes, attempts: Attempts, photos: Path, model: ModelManifest, undisturbed: list[str]
) -> None:
    """A worker, then a node, then the driver; and the source changes before the next attempt."""
    store = attempts.store
    job = attempts.accept_prediction(photos, model, top_k=2)
    driver = attempts.start(job)
    wait_until(lambda: shards(store, job))
    working(cluster).kill()
    before = len(shards(store, job))
    wait_until(lambda: len(shards(store, job)) > before)
    cluster.kill_node(cluster.node_of(working(cluster).pid))
    before = len(shards(store, job))
    wait_until(lambda: len(shards(store, job)) > before)
    kill(driver)
    assert attempts.outcome(job) is None
    done = shards(store, job)
    assert 0 < len(done) < SHARDS, "it was struck too late: a weak test"
    cluster.add_node()
    late = photos / "late.jpg"
    late.hardlink_to(photos / "00000.jpg")
    assert attempts.run(job, 2) == 0, attempts.log(job, 2)
    late.unlink()
    assert attempts.stages(job, 2)[Stage.LIST].skipped
    assert shards(store, job).items() >= done.items()
    assert hashes(attempts, job, 2) == undisturbed
    assert sorted(paths(attempts, job, 2)) == [f"{number:05d}.jpg" for number in range(FILES)]


def test_a_driver_that_wakes_after_its_attempt_was_given_up_changes_nothing(
    attempts: Attempts, photos: Path, model: ModelManifest, undisturbed: list[str]
) -> None:
    store = attempts.store
    job = attempts.accept_prediction(photos, model, top_k=2)
    first = attempts.start(job)
    wait_until(lambda: shards(store, job))
    first.send_signal(signal.SIGSTOP)
    assert len(shards(store, job)) < SHARDS, "it was struck too late: a weak test"
    assert attempts.run(job, 2) == 0, attempts.log(job, 2)
    etags = {info.key: info.etag for info in store.list(names.predictions_prefix(job))}
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(120) == 1
    assert attempts.outcome(job, 1) is None
    assert {info.key: info.etag for info in store.list(names.predictions_prefix(job))} == etags
    assert hashes(attempts, job, 2) == undisturbed
