"""What is garbage: tables for each rule, and random buckets of which nothing that is referred to may go."""

import asyncio
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.contracts import names
from services.contracts.backbones import BackboneName
from services.contracts.base import utc_now
from services.contracts.errors import ObjectStoreUnavailable
from services.contracts.ids import JobId, TrunkId
from services.contracts.jobs import JobKind, JobRecord, TrainingJobSpec
from services.runtime.objects import ObjectInfo, ObjectStore, open_store
from services.training.garbage.operations import collect
from services.training.garbage.policy import (
    Known,
    References,
    Rules,
    SeenJob,
    in_checkpoints,
    in_features,
    in_uploads,
    may_be_in_use,
    refer,
)
from services.training.garbage.reading import shard_size_bytes
from tests.servers.garbage_bucket import DATASET, LONG_AGO, GarbageBucket, job_id, whole_shard
from tests.servers.training import make_manifest
from tests.unit.train.stores import FaultyStore

NOW = utc_now()
GRACE = timedelta(days=1)
RULES = Rules(NOW, GRACE, None)
JOB = job_id(1)
TRUNK = make_manifest(1).trunk


def references(**given: object) -> References:
    empty = References(
        ended=frozenset(),
        running_shapes=frozenset(),
        keys=frozenset(),
        trunks=frozenset(),
        datasets=frozenset(),
        doubtful_models=frozenset(),
        is_complete=True,
        are_running_jobs_known=True,
    )
    return References(**{name: given.get(name, getattr(empty, name)) for name in References.__slots__})


def info(key: str, age: timedelta = LONG_AGO) -> ObjectInfo:
    return ObjectInfo(key, 1, "etag", NOW - age)


# --- one place ------------------------------------------------------------------------------------------------------

ENDED = references(ended=frozenset({JOB}))
STATE, MANIFEST = "c/a1/state.safetensors", "c/a1/manifest.json"


@pytest.mark.parametrize(
    ("refs", "listed", "gone"),
    [
        (ENDED, [info(STATE), info(MANIFEST)], [MANIFEST, STATE]),
        (references(), [info(STATE), info(MANIFEST)], []),
        (ENDED, [info(STATE), info(MANIFEST, GRACE / 2)], []),
        (ENDED, [info(STATE, GRACE), info(MANIFEST, GRACE)], [MANIFEST, STATE]),
        (ENDED, [info(STATE), info(MANIFEST), info("c/a2/state.safetensors", GRACE / 2)], [MANIFEST, STATE]),
        (references(ended=frozenset({JOB}), keys=frozenset({STATE})), [info(STATE), info(MANIFEST)], []),
    ],
    ids=["ended", "running", "young manifest", "just old enough", "another one is young", "referred to"],
)
def test_a_checkpoint_goes_whole_and_its_manifest_first(
    refs: References, listed: list[ObjectInfo], gone: list[str]
) -> None:
    heaps = in_checkpoints(JOB, listed, refs, RULES)
    assert [each.key for heap in heaps for each in heap.everything] == gone


@pytest.mark.parametrize(
    ("given", "known", "in_use"),
    [
        ({}, True, False),
        ({"running_shapes": frozenset({(BackboneName.REKINDLE_TINY, 64)})}, True, True),
        ({"running_shapes": frozenset({(BackboneName.REKINDLE_TINY, 32)})}, True, False),
        ({"running_shapes": frozenset({(BackboneName.REKINDLE_TINY, 32)})}, False, True),
        ({"are_running_jobs_known": False}, True, True),
    ],
    ids=["nothing runs", "the same shape", "another size", "a trunk that cannot be read", "a job that cannot be read"],
)
def test_features_that_a_job_may_be_at(given: dict[str, object], known: bool, in_use: bool) -> None:
    assert may_be_in_use(TRUNK if known else None, references(**given)) is in_use


def test_a_job_may_be_at_the_features_of_every_backbone_that_it_chooses_from() -> None:
    tried = [{"backbone": "rekindle_tiny"}, {"backbone": "resnet50", "image_size": 96}]
    spec = TrainingJobSpec.model_validate({"dataset_id": DATASET, "backbone": "auto", "candidates": tried})
    record = JobRecord(
        job_id=JOB, kind=JobKind.TRAIN, model_name="flowers", created_at=NOW, spec=spec, source_uri="s3://images"
    )
    found = refer([SeenJob(JOB, record, None, is_readable=True)], [], Known(), RULES)
    assert found.running_shapes == {(BackboneName.REKINDLE_TINY, 64), (BackboneName.RESNET50, 96)}


@pytest.mark.parametrize(
    ("refs", "kept", "ages", "gone"),
    [
        (references(), timedelta(days=9), [10, 20], 2),
        (references(), timedelta(days=9), [8, 20], 0),
        (references(), None, [10, 20], 0),
        (references(trunks=frozenset({TrunkId("t")})), timedelta(days=9), [10, 20], 0),
        (references(is_complete=False), timedelta(days=9), [10, 20], 0),
    ],
    ids=["unused for long", "one is newer", "kept for ever", "a version's", "in doubt"],
)
def test_features_of_no_use(refs: References, kept: timedelta | None, ages: list[int], gone: int) -> None:
    listed = [info(f"f/{age}", timedelta(days=age)) for age in ages]
    heaps = in_features(TrunkId("t"), listed, frozenset(), refs, Rules(NOW, GRACE, kept))
    assert sum(len(heap.objects) for heap in heaps) == gone


@pytest.mark.parametrize(
    ("refs", "ages", "gone"),
    [
        (references(), [LONG_AGO, LONG_AGO], 2),
        (references(), [LONG_AGO, GRACE / 2], 0),
        (references(datasets=frozenset({DATASET})), [LONG_AGO], 0),
        (references(is_complete=False), [LONG_AGO], 0),
    ],
    ids=["nobody's", "still written", "known", "in doubt"],
)
def test_uploads(refs: References, ages: list[timedelta], gone: int) -> None:
    listed = [info(f"d/{number}", age) for number, age in enumerate(ages)]
    assert sum(len(heap.objects) for heap in in_uploads(DATASET, listed, refs, RULES)) == gone


SHARD = whole_shard()


@pytest.mark.parametrize(
    ("head", "size_bytes"),
    [
        (SHARD, len(SHARD)),
        (SHARD[:-37], len(SHARD)),
        (SHARD[:50], None),
        (b"", None),
        (b"\xff" * 64, None),
        ((2).to_bytes(8, "little") + b"{}", None),
        ((2).to_bytes(8, "little") + b"[]", None),
        ((4).to_bytes(8, "little") + b"nope", None),
    ],
    ids=["whole", "header alone", "cut header", "empty", "nonsense", "no tensors", "a list", "no JSON"],
)
def test_how_long_a_shard_must_be(head: bytes, size_bytes: int | None) -> None:
    assert shard_size_bytes(head) == size_bytes


# --- random buckets -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """A job and what became of the version that it claimed."""

    ended: timedelta | None
    fate: str
    model_name: str
    known_unfinished: bool
    damage: str | None


FATES = ["no claim", "claimed", "published", "deleted", "deleted recently", "deleted and aliased"]
DAMAGES = ["spec.json", "outcome.json", "claim.json", "model.json", "deleted.json"]
STORIES = st.lists(
    st.builds(
        Story,
        ended=st.sampled_from([None, GRACE / 2, LONG_AGO, LONG_AGO]),
        fate=st.sampled_from(FATES),
        model_name=st.sampled_from(["flowers", "others"]),
        known_unfinished=st.sampled_from([False, False, False, True]),
        damage=st.none() | st.sampled_from(DAMAGES),
    ),
    max_size=6,
)


def tell(bucket: GarbageBucket, stories: Iterable[Story]) -> tuple[Known, set[str]]:
    """Writes the stories; what the database knows, and the keys that must stay, found by the stories alone."""
    numbers = {"flowers": count(1), "others": count(1)}
    unfinished: set[JobId] = set()
    sacred: set[str] = set()
    for number, story in enumerate(stories, 1):
        version, name = next(numbers[story.model_name]), story.model_name
        is_published = story.fate not in ("no claim", "claimed")
        result = (name, version) if is_published else None
        job = bucket.job(number, ended=story.ended, published=result, model_name=name)
        if story.fate == "claimed":
            bucket.claim(job, version, name, dead=True)
        if is_published:
            manifest = bucket.version(job, version, name)
            if story.fate == "published" or story.damage in ("model.json", "deleted.json"):
                sacred |= {ref.key for ref in (manifest.tail, manifest.predictions) if ref is not None}
                sacred |= bucket.exports(manifest)
            if story.fate.startswith("deleted"):
                bucket.delete(manifest, GRACE / 2 if story.fate == "deleted recently" else LONG_AGO)
            if story.fate in ("deleted recently", "deleted and aliased"):
                sacred.add(manifest.tail.key)
            if story.fate == "deleted and aliased":
                bucket.alias(f"alias-{version}", version, name)
        folders = (f"jobs/{job}/", f"models/{name}/v{version}/")
        for key in [f"{folder}{story.damage}" for folder in folders]:
            if key in bucket.listed():
                bucket.damage(key)
                sacred |= {key for key in bucket.listed() if key.startswith(folders)}
        if story.known_unfinished:
            unfinished.add(job)
        if story.known_unfinished or story.ended != LONG_AGO:
            sacred |= {key for key in bucket.listed() if key.startswith(folders)}
    made = ("/checkpoints/", "/exports/")
    records = {key for key in bucket.listed() if key.endswith(".json") and not any(each in key for each in made)}
    return Known(unfinished_jobs=frozenset(unfinished)), sacred | records


class MortalStore(FaultyStore):
    """Dies in the middle of the deletion number `lives`, after the first of its keys."""

    def __init__(self, inner: ObjectStore, lives: int) -> None:
        super().__init__(inner)
        self.lives = lives

    def delete(self, keys: Iterable[str]) -> None:
        listed = list(keys)
        self.lives -= bool(listed)
        if self.lives < 0:
            self.inner.delete(listed[:1])
            raise ObjectStoreUnavailable("killed")
        self.inner.delete(listed)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STORIES, st.integers(0, 6))
def test_nothing_that_is_referred_to_goes_wherever_a_pass_is_killed(stories: list[Story], lives: int) -> None:
    now = NOW + 2 * GRACE
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder).as_uri())
        bucket = GarbageBucket(store, now)
        known, sacred = tell(bucket, stories)
        before = bucket.listed()
        assert sacred <= before
        rules = Rules(now, GRACE, None)
        expected = asyncio.run(collect(store, known, rules, dry_run=True))
        assert bucket.listed() == before
        died = False
        try:
            asyncio.run(collect(MortalStore(store, lives), known, rules, dry_run=False))
        except ObjectStoreUnavailable:
            died = True
        assert sacred <= bucket.listed()
        if expected.objects == 0:
            assert not died
        again = asyncio.run(collect(store, known, rules, dry_run=False))
        assert sacred <= bucket.listed()
        assert len(before) - len(bucket.listed()) == expected.objects
        assert died or again.objects == 0
        assert asyncio.run(collect(store, known, rules, dry_run=False)).removed == []


class FrozenStore(FaultyStore):
    """Calls `meanwhile` before its first deletion: what others do while this process is frozen."""

    def __init__(self, inner: ObjectStore, meanwhile: Callable[[], None]) -> None:
        super().__init__(inner)
        self.meanwhile: Callable[[], None] | None = meanwhile

    def delete(self, keys: Iterable[str]) -> None:
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        self.inner.delete(keys)


def test_a_leader_that_was_frozen_in_the_middle_of_a_pass_does_no_harm(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    bucket = GarbageBucket(store, NOW + 2 * GRACE)
    rules = Rules(bucket.now, GRACE, None)
    bucket.version(bucket.job(1, published=("flowers", 1)), 1)
    bucket.claim(bucket.job(2), 2, dead=True)
    running = bucket.job(3, ended=None)
    trunk = TRUNK.model_copy(update={"image_size": 32})  # of another shape than the running job's
    bucket.put(names.trunk_manifest(trunk.trunk_id), trunk.model_dump_json().encode(), garbage=False)
    bucket.features("a", 1, b"broken", garbage=True)

    def meanwhile() -> None:
        """Another leads, collects, jobs end and begin, and one of them computes the broken features again."""
        asyncio.run(collect(store, Known(), rules, dry_run=False))
        bucket.version(running, 3, dead=False)
        bucket.end(running, GRACE / 2, ("flowers", 3))
        job = bucket.job(4, ended=None)
        bucket.claim(job, 4, dead=False)
        bucket.garbage.clear()
        bucket.features("a", 1, whole_shard(), garbage=False)

    asyncio.run(collect(FrozenStore(store, meanwhile), Known(), rules, dry_run=False))
    assert bucket.listed() == bucket.kept


def test_a_deleted_version_stays_while_a_job_retrains_it(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    bucket = GarbageBucket(store, NOW + 2 * GRACE)
    rules = Rules(bucket.now, GRACE, None)
    parent = bucket.version(bucket.job(1, published=("flowers", 1)), 1)
    child = bucket.job(2, ended=None, parent=("flowers", 1))
    bucket.delete(parent, garbage=False)
    asyncio.run(collect(store, Known(), rules, dry_run=False))
    assert bucket.listed() == bucket.kept
    bucket.end(child, LONG_AGO, None)
    asyncio.run(collect(store, Known(), rules, dry_run=False))
    assert parent.tail.key not in bucket.listed()


@pytest.mark.parametrize(
    ("ended", "succeeded"),
    [(None, True), (GRACE / 2, True), (LONG_AGO, True), (LONG_AGO, False)],
    ids=["running", "young", "succeeded", "cancelled"],
)
def test_of_a_batch_prediction_the_results_stay(tmp_path: Path, ended: timedelta | None, succeeded: bool) -> None:
    store = open_store(tmp_path.as_uri())
    bucket = GarbageBucket(store, NOW + 2 * GRACE)
    bucket.version(bucket.job(1, published=("flowers", 1)), 1)
    job = bucket.prediction(2, ended=ended, succeeded=succeeded)
    if ended == GRACE / 2:
        bucket.keep(names.predictions_prefix(job))
    asyncio.run(collect(store, Known(), Rules(bucket.now, GRACE, None), dry_run=False))
    assert bucket.listed() == bucket.kept


def test_a_deleted_version_stays_while_a_batch_prediction_labels_with_it(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    bucket = GarbageBucket(store, NOW + 2 * GRACE)
    rules = Rules(bucket.now, GRACE, None)
    version = bucket.version(bucket.job(1, published=("flowers", 1)), 1)
    bucket.version(bucket.job(2, published=("flowers", 2)), 2)
    job = bucket.prediction(3, ended=None, version=1)
    bucket.delete(version, garbage=False)
    asyncio.run(collect(store, Known(), rules, dry_run=False))
    assert bucket.listed() == bucket.kept
    bucket.end(job, LONG_AGO, None)
    asyncio.run(collect(store, Known(), rules, dry_run=False))
    assert version.tail.key not in bucket.listed()


def test_the_files_of_a_dataset_that_was_labelled_are_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    bucket = GarbageBucket(store, NOW + 2 * GRACE)
    bucket.prediction(1, ended=None)
    bucket.put(f"{names.dataset_files(DATASET)}a.jpg", b"an image", garbage=False)
    asyncio.run(collect(store, Known(), Rules(bucket.now, GRACE, None), dry_run=False))
    assert bucket.listed() == bucket.kept


def test_the_weights_of_a_network_tail_are_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    bucket = GarbageBucket(store, NOW)
    manifest = bucket.version(bucket.job(1, published=("flowers", 1)), 1)
    weights = bucket.put(names.model_object("flowers", 1, 2, "weights.safetensors"), b"weights", garbage=False)
    network = manifest.model_copy(update={"tail_kind": "network", "tail_weights": weights})
    store.put(names.model_manifest("flowers", 1), network.model_dump_json().encode())
    later = Rules(NOW + 2 * GRACE, GRACE, None)
    asyncio.run(collect(store, Known(unfinished_jobs=frozenset()), later, dry_run=False))
    assert bucket.listed() == bucket.kept
