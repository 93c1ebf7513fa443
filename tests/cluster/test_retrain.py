"""Retraining on a real Ray cluster: known images are not computed again, and the report compares like with like."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

from services.contracts.datasets import Split
from services.contracts.jobs import JobEventType, Progress, Stage
from tests.cluster.attempts import Attempts
from tests.servers.ray_local import LocalRay

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

TINTS = {"blue": (40, 60, 200), "green": (40, 200, 60), "red": (200, 60, 40), "grey": (128, 128, 128)}
TRAIN, TEST = 10, 4


def draw(folder: Path, label: str, tint: str, count: int, seed: int, split: Split = Split.TRAIN) -> None:
    """That many images of noise in a tint, numbered on from those that are there."""
    rng = np.random.default_rng(seed)
    target = folder / split / label
    target.mkdir(parents=True, exist_ok=True)
    first = len(list(target.iterdir()))
    for number in range(first, first + count):
        pixels = np.clip(rng.normal(TINTS[tint], 40, (80, 80, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(target / f"{number:03d}.png")


@pytest.fixture(scope="module")
def attempts(ray_local: LocalRay, tmp_path_factory: pytest.TempPathFactory) -> Attempts:
    return Attempts(ray_local, tmp_path_factory.mktemp("bucket").as_uri())


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the parent is trained on: three tints."""
    folder = tmp_path_factory.mktemp("first")
    for seed, label in enumerate(("blue", "green", "red")):
        draw(folder, label, label, TRAIN, seed)
        draw(folder, label, label, TEST, 10 + seed, Split.TEST)
    return folder


@pytest.fixture(scope="module")
def second(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More blue, a new class, one that is gone, one with another name; two images the parent has learned from."""
    folder = tmp_path_factory.mktemp("second") / "images"
    shutil.copytree(first, folder)
    draw(folder, "blue", "blue", 3, 20)
    draw(folder, "grey", "grey", TRAIN, 21)
    draw(folder, "grey", "grey", TEST, 22, Split.TEST)
    for split in (Split.TRAIN, Split.TEST):
        shutil.rmtree(folder / split / "green")
        (folder / split / "red").rename(folder / split / "crimson")
    for name in ("000.png", "001.png"):
        (folder / Split.TRAIN / "blue" / name).rename(folder / Split.TEST / "blue" / f"learned-{name}")
    return folder


def cached_rows(attempts: Attempts) -> int:
    """Of every shard: what the trunk ran over, twice if it did so twice, in whatever stage."""
    shards = [info.key for info in attempts.store.list("features/") if info.key.endswith(".safetensors")]
    return sum(len(load(attempts.store.get(key))["view"]) for key in shards)


def test_a_version_is_retrained_on_more_images_and_other_classes(attempts: Attempts, first: Path, second: Path) -> None:
    original = attempts.accept(first, "tints", seed=3)
    assert attempts.run(original) == 0, attempts.log(original)
    known = cached_rows(attempts)
    assert known == 3 * (TRAIN + TEST)

    wanted = {"seed": 3, "parent": {"model_name": "tints", "version": 1}, "rename_classes": {"red": "crimson"}}
    retrained = attempts.accept(second, "tints", **wanted)
    assert attempts.run(retrained) == 0, attempts.log(retrained)
    assert cached_rows(attempts) - known == 3 + TRAIN + TEST, "images that were known were computed again"

    version = attempts.model(retrained)
    assert (version.version, version.labels) == (2, ["blue", "crimson", "grey"])
    assert version.evaluation is not None
    assert version.evaluation.image_count == 3 * TEST + 2
    found = version.parent_comparison
    assert found is not None
    assert (found.parent.model_name, found.parent.version, found.split) == ("tints", 1, "test")
    assert (found.image_count, found.left_out_count, found.trained_by_parent_count) == (2 * TEST + 2, TEST, 2)
    assert (found.added_classes, found.removed_classes) == (["grey"], ["green"])
    assert found.renamed_classes == {"red": "crimson"}
    assert [each.label for each in found.classes] == ["blue", "crimson"]
    assert found.parent_accuracy is not None
    assert found.parent_accuracy > 0.7, "the parent's answers were not matched by name"
    assert found.unseen_parent_accuracy is not None

    again = attempts.accept(second, "again", **wanted)
    assert attempts.run(again) == 0, attempts.log(again)
    assert attempts.model(again).tail_sha256 == version.tail_sha256
    assert attempts.model(again).parent_comparison == found

    cold = attempts.accept(second, "cold", seed=3)
    assert attempts.run(cold) == 0, attempts.log(cold)
    from_zero = attempts.model(cold).evaluation
    assert from_zero is not None
    assert from_zero.loss == pytest.approx(version.evaluation.loss, rel=0.05), "the optimum depends on the start"


def test_of_a_dataset_that_has_grown_only_what_is_new_is_read(attempts: Attempts, second: Path) -> None:
    before = attempts.accept(second, "grown", seed=3)
    assert attempts.run(before) == 0, attempts.log(before)
    known = cached_rows(attempts)
    draw(second, "blue", "blue", 2, 30)
    after = attempts.accept(second, "grown", seed=3)
    assert attempts.run(after) == 0, attempts.log(after)
    told = [
        Progress.model_validate(record.data)
        for record in attempts.records(after)
        if record.type is JobEventType.PROGRESS and record.stage is Stage.PREFLIGHT
    ]
    assert [(each.done, each.total) for each in told] == [(told[-1].done - 2, told[-1].done), (told[-1].done,) * 2]
    assert cached_rows(attempts) - known == 2


def test_a_version_says_what_its_search_has_found(attempts: Attempts, first: Path) -> None:
    job = attempts.accept(first, "searched", seed=3, weight_decay="auto")
    assert attempts.run(job) == 0, attempts.log(job)
    report = attempts.model(job).fit
    assert report is not None
    best = min(report.trials, key=lambda trial: trial.validation_loss)
    assert report.weight_decay == best.weight_decay
    assert report.epochs > sum(trial.epochs for trial in report.trials)
    assert report.temperature != 1
    evaluation = attempts.model(job).evaluation
    assert evaluation is not None
    assert evaluation.uncalibrated_error not in (None, evaluation.calibration_error)
