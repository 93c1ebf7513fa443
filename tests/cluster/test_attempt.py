"""Whole attempts on a real Ray cluster: what they publish, and that killing them changes nothing."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ray_cluster.train import finished
from ray_cluster.vision.tails import Tail
from services.contracts import names
from services.contracts.backbones import BackboneName
from services.contracts.ids import JobId
from services.contracts.jobs import BaseModelSpec, FailureClass, JobEventType, Stage, TrainerRecord
from services.contracts.models import EngineChoice, ModelManifest, VersionClaim
from services.runtime.objects import ObjectStore
from tests.cluster.attempts import Attempts, kill, wait_until
from tests.cluster.exports import check_exports

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ALL_STAGES = [Stage.PREFLIGHT, Stage.FEATURES, Stage.FIT, Stage.EVALUATE, Stage.PUBLISH]


def test_a_job_publishes_a_model_that_is_complete_by_itself(attempts: Attempts, undisturbed: JobId) -> None:
    model = attempts.model(undisturbed)
    assert (model.model_name, model.version, model.job_id, model.attempt) == ("drawings", 1, undisturbed, 1)
    tail = Tail.from_bytes(attempts.store.get(model.tail.key))
    assert tail.sha256() == model.tail_sha256
    assert (tail.feature_dim, tail.class_count) == (model.trunk.feature_dim, len(model.labels))
    assert model.labels == sorted(model.labels)
    assert model.evaluation is not None
    assert model.evaluation.split == "test"
    assert model.evaluation.image_count == 4 * len(model.labels)
    assert model.evaluation.accuracy > 0.9
    assert model.predictions is not None
    lines = attempts.store.get(model.predictions.key).decode().splitlines()
    right = sum(json.loads(line)["label"] == json.loads(line)["predictions"][0]["label"] for line in lines)
    assert right / len(lines) == pytest.approx(model.evaluation.accuracy)
    outcome = attempts.outcome(undisturbed)
    assert outcome is not None
    assert outcome.published is not None
    assert (outcome.published.version, outcome.published.accuracy) == (1, model.evaluation.accuracy)


def test_a_job_tells_what_it_does(attempts: Attempts, undisturbed: JobId) -> None:
    records = attempts.records(undisturbed)
    assert [record.seq for record in records] == list(range(len(records)))
    stages = attempts.stages(undisturbed)
    assert list(stages) == ALL_STAGES
    assert not any(timing.skipped for timing in stages.values())
    for timing in stages.values():
        assert timing.finished_at is not None
        assert timing.compute_s is not None
        assert 0 < timing.compute_s <= (timing.finished_at - timing.started_at).total_seconds() + 0.001
    for stage in (Stage.PREFLIGHT, Stage.FEATURES, Stage.FIT):
        (work,) = stages[stage].machines
        assert (len(work.machine.node_id), work.machine.instance_type) == (56, "local")
        assert work.busy_s > 0
    (key,) = [info.key for info in attempts.store.list(names.attempt_trainers(undisturbed, 1))]
    trainer = TrainerRecord.model_validate_json(attempts.store.get(key))
    assert (trainer.stage, trainer.machine) == (Stage.FIT, stages[Stage.FIT].machines[0].machine)
    epochs = [record.data["epoch"] for record in records if record.type is JobEventType.EPOCH]
    assert epochs == sorted(epochs)
    assert epochs[0] == 1
    warnings = [record.message for record in records if record.type is JobEventType.WARNING]
    assert any("'train/stray.jpg'" in warning for warning in warnings)
    assert "epoch 1: loss" in attempts.job_logs(undisturbed)


def test_every_export_says_what_was_evaluated(
    attempts: Attempts, drawings: Path, undisturbed: JobId, tmp_path: Path
) -> None:
    model = attempts.model(undisturbed)
    assert model.predictions is not None
    lines = [json.loads(line) for line in attempts.store.get(model.predictions.key).decode().splitlines()]
    expected = {drawings / line["path"]: line["predictions"] for line in lines[::3]}
    check_exports(attempts.store, model, expected, tmp_path, readme=True)


def same_bits(left: ModelManifest, right: ModelManifest) -> bool:
    return (left.tail_sha256, left.evaluation, left.fingerprint) == (
        right.tail_sha256,
        right.evaluation,
        right.fingerprint,
    )


@contextmanager
def choosing_otherwise(store: ObjectStore) -> Iterator[None]:
    """Meanwhile what was measured beside each trunk says that another engine is the best."""
    kept = {info.key: store.get(info.key) for info in store.list("trunks/") if "/engines/" in info.key}
    assert kept, "no engine was measured"
    for key, data in kept.items():
        chosen = EngineChoice.model_validate_json(data)
        other = next(name for name in chosen.images_per_second if name != chosen.engine)
        store.put(key, chosen.model_copy(update={"engine": other}).model_dump_json().encode())
    yield
    for key, data in kept.items():
        store.put(key, data)


def test_a_job_on_a_known_trunk_computes_features_as_it_reads_and_they_are_the_same(
    attempts: Attempts, drawings: Path, undisturbed: JobId
) -> None:
    forgotten = [info.key for prefix in ("datasets/", "features/") for info in attempts.store.list(prefix)]
    attempts.store.delete(forgotten)
    job = attempts.accept(drawings, "early", seed=3)
    assert attempts.run(job, 1) == 0, attempts.log(job, 1)
    stages = attempts.stages(job)
    assert [stage for stage, timing in stages.items() if timing.skipped] == [Stage.FEATURES]
    assert same_bits(attempts.model(job), attempts.model(undisturbed))


def test_a_job_whose_driver_is_killed_twice_ends_with_the_same_bits(
    attempts: Attempts, drawings: Path, undisturbed: JobId
) -> None:
    """Whatever the cache of measured engines says by then."""
    job = attempts.accept(drawings, "killed", seed=3)
    first = attempts.start(job, 1)
    wait_until(lambda: attempts.has_begun(job, 1, Stage.FIT))
    kill(first)
    with choosing_otherwise(attempts.store):
        second = attempts.start(job, 2)
        wait_until(lambda: finished.find_head(attempts.store, job))
        kill(second)
        assert attempts.run(job, 3) == 0, attempts.log(job, 3)
    assert attempts.outcome(job, 1) is None
    assert attempts.stages(job, 3)[Stage.FIT].skipped
    outcome = attempts.outcome(job, 3)
    assert outcome is not None
    assert outcome.published is not None
    assert outcome.published.version == 1
    assert same_bits(attempts.model(job, 3), attempts.model(undisturbed))
    assert attempts.store.list_folder(names.model_prefix("killed")).folders == ["v1"]


def one_class(folder: Path) -> Path:
    shutil.rmtree(folder / "test")
    for other in sorted((folder / "train").iterdir())[1:]:
        shutil.rmtree(other) if other.is_dir() else other.unlink()
    return folder


def empty(folder: Path) -> Path:
    shutil.rmtree(folder)
    folder.mkdir()
    return folder


def missing(folder: Path) -> Path:
    return folder / "nowhere"


def broken(folder: Path) -> Path:
    for picture in (folder / "train").glob("*/00?.png"):
        picture.write_bytes(picture.read_bytes()[:200])
    return folder


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (empty, "dataset_empty"),
        (one_class, "dataset_too_few_classes"),
        (missing, "source_unreadable"),
        (broken, "too_many_quarantined"),
    ],
)
def test_bad_data_fails_at_once_and_says_why(
    attempts: Attempts, drawings: Path, tmp_path: Path, damage: object, code: str
) -> None:
    assert callable(damage)
    folder = tmp_path / "copy"
    shutil.copytree(drawings, folder)
    job = attempts.accept(damage(folder), "bad")
    assert attempts.run(job) == 1
    outcome = attempts.outcome(job)
    assert outcome is not None
    assert outcome.failure is not None
    assert (outcome.failure.failure_class, outcome.failure.code) == (FailureClass.USER, code)
    assert outcome.failure.message
    assert attempts.store.list_folder(names.model_prefix("bad")).folders == []


def test_weights_that_do_not_match_their_hash_fail_the_job(attempts: Attempts, drawings: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(b"no weights")
    weights = {"uri": (tmp_path / "weights.h5").as_uri(), "sha256": "0" * 64}
    job = attempts.accept(drawings, "bad", weights=weights)
    assert attempts.run(job) == 1
    outcome = attempts.outcome(job)
    assert outcome is not None
    assert outcome.failure is not None
    assert (outcome.failure.failure_class, outcome.failure.code) == (FailureClass.USER, "weights_unusable")


def test_an_attempt_that_was_given_up_does_nothing(attempts: Attempts, drawings: Path) -> None:
    job = attempts.accept(drawings, "fenced")
    process = attempts.start(job, 1)
    attempts.fence(job, 2)
    assert process.wait(120) == 1
    assert attempts.outcome(job, 1) is None
    assert attempts.store.list_folder(names.model_prefix("fenced")).folders == []


def test_the_pretrained_classifier_is_published_once(attempts: Attempts, undisturbed: JobId, tmp_path: Path) -> None:
    top = attempts.model(undisturbed).trunk.top
    assert top is not None
    classes = Tail.from_bytes(attempts.store.get(top.key)).class_count
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps([f"class {number}" for number in range(classes)]))
    base = BaseModelSpec(
        backbone=BackboneName.REKINDLE_TINY, weights="bundled", image_size=64, labels_uri=labels.as_uri()
    )
    jobs = [attempts.accept_base(base) for _ in range(2)]
    assert [attempts.run(job) for job in jobs] == [0, 0]
    first, second = (attempts.model(job) for job in jobs)
    assert first == second
    assert (first.model_name, first.version, first.labels[:2]) == ("base", 1, ["class 0", "class 1"])
    claim = VersionClaim.model_validate_json(attempts.store.get(names.model_claim("base", 1)))
    assert claim.job_id == jobs[0]
