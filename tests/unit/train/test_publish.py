"""Versions: one per job, none half visible, none of an attempt that was given up."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ray_cluster.train import publish
from ray_cluster.vision.tails import Tail
from services.contracts import names
from services.contracts.backbones import BackboneName
from services.contracts.base import utc_now
from services.contracts.errors import Fenced, ObjectStoreUnavailable
from services.contracts.ids import JobId, TrunkId
from services.contracts.jobs import Fence
from services.contracts.models import ModelManifest, ObjectRef, TrunkManifest
from services.runtime.objects import ObjectStore, open_store
from tests.unit.train.stores import FaultyStore

TRUNK = TrunkManifest(
    trunk_id=TrunkId("t" * 64), backbone=BackboneName.REKINDLE_TINY, weights="bundled", weights_sha256="0" * 64,
    image_size=64, cut="pooled", preprocessing_version=1, feature_dim=4, artefacts={}, top=None,
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path.as_uri())


def tail() -> Tail:
    return Tail(np.arange(8, dtype=np.float32).reshape(4, 2), np.zeros(2, np.float32))


def publish_job(store: ObjectStore, job: str, attempt: int = 1) -> ModelManifest:
    def describe(version: int, tail_ref: ObjectRef, predictions: ObjectRef | None) -> ModelManifest:
        return ModelManifest(
            model_name="pets", version=version, created_at=utc_now(), job_id=JobId(job), attempt=attempt, trunk=TRUNK,
            tail=tail_ref, tail_sha256=tail().sha256(), labels=["cat", "dog"], spec=None, dataset_content_sha256=None,
            train_image_count=2, evaluation=None, predictions=predictions, fingerprint=None,
        )  # fmt: skip

    return publish.publish(store, "pets", JobId(job), attempt, tail(), b"{}\n", describe)


def test_each_job_gets_the_next_version(store: ObjectStore) -> None:
    assert [publish_job(store, job).version for job in ("job_a", "job_b")] == [1, 2]
    read = publish.read_version(store, "pets", 2)
    assert read is not None
    assert Tail.from_bytes(store.get(read.tail.key)).sha256() == tail().sha256() == read.tail_sha256


def test_publishing_again_finds_what_was_published(store: ObjectStore) -> None:
    first = publish_job(store, "job_a", attempt=1)
    publish_job(store, "job_b")
    assert publish_job(store, "job_a", attempt=2) == first


def test_an_attempt_after_a_lost_one_publishes_the_claimed_version(store: ObjectStore) -> None:
    dies = FaultyStore(store, fails=lambda key: key.endswith("model.json"))
    with pytest.raises(ObjectStoreUnavailable):
        publish_job(dies, "job_a", attempt=1)
    assert publish.read_version(store, "pets", 1) is None
    assert publish_job(store, "job_b").version == 2
    assert publish_job(store, "job_a", attempt=2).version == 1


def test_a_given_up_attempt_publishes_nothing(store: ObjectStore) -> None:
    store.put(names.job_fence(JobId("job_a")), Fence(attempt=2).model_dump_json().encode())
    with pytest.raises(Fenced):
        publish_job(store, "job_a", attempt=1)
    assert publish.read_version(store, "pets", 1) is None


def test_jobs_that_end_together_get_different_versions(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda number: publish_job(store, f"job_{number}").version, range(8)))
    assert sorted(versions) == list(range(1, 9))


def test_versions_are_ordered_as_numbers(store: ObjectStore) -> None:
    for number in range(11):
        publish_job(store, f"job_{number}")
    assert publish.list_versions(store, "pets")[:3] == [11, 10, 9]
