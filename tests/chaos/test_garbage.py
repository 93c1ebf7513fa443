"""I8: whoever collects is killed in the middle, twice; in the end all garbage is gone, and nothing else is."""

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np

from ray_cluster.train import checkpoints
from ray_cluster.train.publish import read_version
from ray_cluster.vision.verified import read_verified
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.jobs import Fence
from services.contracts.models import Fingerprint
from services.runtime.objects import ObjectStore, open_store
from tests.servers.fake_ray_http import running_fake_ray
from tests.servers.garbage_bucket import GarbageBucket, job_id
from tests.servers.gateway_process import GatewayProcess, gateways
from tests.servers.local_stack import run_command
from tests.servers.training import eventually

JOBS = 8
VERSIONS = 6
SHARDS = 200
"""Objects of each job's largest checkpoint: so many that a kill comes before the last is gone."""
RUNNING = job_id(JOBS + VERSIONS + 1)
TWO_DAYS_S = 2 * 24 * 3600
FINGERPRINT = Fingerprint(device="cpu", trunk_engine="litert", tensorflow="2", keras="3", threads=1)


def fill(bucket: GarbageBucket, folder: Path) -> checkpoints.Snapshot:
    """Jobs that failed, jobs that published, versions that were deleted, and one job that goes on. Returns what its
    newest checkpoint holds."""
    for number in range(1, JOBS + 1):
        job = bucket.job(number)
        for shard in range(SHARDS):
            key = f"{names.checkpoint_prefix(job, 1, 0, 7)}shard-{shard}.safetensors"
            (folder / key).write_bytes(b"written past the store, which would take its time")
            bucket.garbage.add(key)
    for version in range(1, VERSIONS + 1):
        manifest = bucket.version(bucket.job(JOBS + version, published=("flowers", version)), version)
        if version % 2 == 0:
            bucket.delete(manifest)
    bucket.job(JOBS + VERSIONS + 1, ended=None)
    bucket.put(names.job_fence(RUNNING), Fence(attempt=2).model_dump_json().encode(), garbage=False)
    snapshot = checkpoints.Snapshot(step=9, epoch=3, tensors={"kernel": np.arange(6.0)}, position={})
    before = bucket.listed()
    checkpoints.commit(bucket.store, RUNNING, 2, snapshot, FINGERPRINT)
    # It has made older checkpoints superfluous itself.
    bucket.kept = bucket.kept & bucket.listed() | (bucket.listed() - before)
    return snapshot


def age(folder: Path) -> None:
    """Everything was written two days ago."""
    then_s = time.time() - TWO_DAYS_S
    for file in folder.rglob("*"):
        if file.is_file():
            os.utime(file, (then_s, then_s))


def remaining(bucket: GarbageBucket, folder: Path) -> int:
    return sum((folder / key).exists() for key in bucket.garbage)


async def kill_in_the_middle(running: list[GatewayProcess], bucket: GarbageBucket, folder: Path) -> None:
    """Kills the leader as soon as it has begun to remove anything, and makes sure that it had not finished."""

    async def leader() -> GatewayProcess | None:
        return next((gateway for gateway in running if gateway.leads()), None)

    before, killed = remaining(bucket, folder), await eventually(leader, 60)
    deadline_s = time.monotonic() + 60
    while remaining(bucket, folder) == before:
        assert time.monotonic() < deadline_s, killed.log.read_text()[-4000:]
    killed.kill()
    running.remove(killed)
    assert 0 < remaining(bucket, folder) < before


async def test_collectors_are_killed_in_the_middle(tmp_path: Path) -> None:
    folder = tmp_path / "bucket"
    store: ObjectStore = open_store(folder.as_uri())
    bucket = GarbageBucket(store, utc_now())
    snapshot = fill(bucket, folder)
    bucket.kept.add("left/by/somebody")
    store.put("left/by/somebody", b"else")
    age(folder)
    assert bucket.listed() == bucket.kept | bucket.garbage
    contents = {key: hashlib.sha256(store.get(key)).digest() for key in bucket.kept}
    url = f"sqlite+aiosqlite:///{tmp_path / 'home' / 'rekindle.db'}"
    often = {"REKINDLE_GARBAGE_INTERVAL_S": "1"}
    with running_fake_ray(tmp_path, 3.0) as ray, gateways(tmp_path, url, ray.url, 2, **often) as started:
        alive = list(started)
        await kill_in_the_middle(alive, bucket, folder)
        await kill_in_the_middle(alive, bucket, folder)
    left = remaining(bucket, folder)
    command = ("gc", "--json", "--bucket", folder.as_uri(), "--database", url)
    done = run_command(*command, environment={"REKINDLE_HOME": str(tmp_path / "home")})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["objects"] == left
    assert bucket.listed() == bucket.kept
    assert {key: hashlib.sha256(store.get(key)).digest() for key in bucket.kept} == contents
    for version in range(1, VERSIONS + 1, 2):
        manifest = read_version(store, "flowers", version)
        assert manifest is not None
        assert manifest.predictions is not None
        assert (read_verified(store, manifest.tail), read_verified(store, manifest.predictions)) == (b"second", b"[]")
    resumed = checkpoints.load_newest(store, RUNNING)
    assert resumed is not None
    assert (resumed.manifest.step, resumed.tensors["kernel"].tolist()) == (9, snapshot.tensors["kernel"].tolist())
