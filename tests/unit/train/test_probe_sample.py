"""Which images backbones are probed on: few enough, of every class alike, and the same ones each time."""

import hashlib
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from ray_cluster.train import probe_sample
from ray_cluster.train.probe_sample import CLASSES, FOLDS, IMAGES, IMAGES_PER_CLASS, sample
from services.contracts.datasets import DatasetManifest, ImageRecord, PreflightReport, Split
from services.contracts.ids import DatasetId

REPORT = PreflightReport(image_count=0, classes=[], quarantined=[], duplicate_count=0, warnings=[], ignored_count=0)


def image(label: str, number: int, split: Split = Split.TRAIN) -> ImageRecord:
    name = f"{label}/{number}"
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return ImageRecord(path=name, sha256=sha256, size_bytes=1, width=1, height=1, label=label, split=split)


def manifest(images: list[ImageRecord]) -> DatasetManifest:
    labels = sorted({each.label for each in images})
    return DatasetManifest(dataset_id=DatasetId("ds_1"), fingerprint="", labels=labels, images=images, report=REPORT)


sizes = st.lists(st.integers(1, 90), min_size=2, max_size=20)


@given(sizes, st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_every_class_is_there_alike_and_spread_over_the_folds(sizes: list[int], seed: int) -> None:
    images = [image(f"{place:03d}", number) for place, size in enumerate(sizes) for number in range(size)]
    probed = sample(manifest(images), seed)
    assert len(probed.images) <= IMAGES
    most = min(IMAGES_PER_CLASS, IMAGES // len(sizes))
    assert Counter(each.label for each in probed.images) == {
        f"{place:03d}": min(size, most) for place, size in enumerate(sizes)
    }
    assert probed.fold_count >= 2, "nobody would be left to train on"
    by_fold = Counter(zip([each.label for each in probed.images], probed.folds, strict=True))
    for label in probed.labels:
        counts = [by_fold[label, fold] for fold in range(FOLDS)]
        assert max(counts) - min(counts) <= 1
    assert [probed.labels[index] for index in probed.classes()] == [each.label for each in probed.images]


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=10, deadline=None)
def test_it_goes_by_content_and_leaves_the_test_images_alone(seed: int) -> None:
    tested = [image("cat", number, Split.TEST) for number in range(1000, 1050)]
    images = [image(label, number) for label in ("cat", "dog") for number in range(80)]
    probed = sample(manifest(images), seed)
    assert sample(manifest([*reversed(images), *tested]), seed) == probed
    moved = [each.model_copy(update={"split": Split.VALIDATION, "path": f"elsewhere/{each.path}"}) for each in images]
    assert [each.sha256 for each in sample(manifest(moved), seed).images] == [each.sha256 for each in probed.images]
    one_more = sample(manifest([*images, image("cat", 80)]), seed)
    assert len({each.sha256 for each in one_more.images} - {each.sha256 for each in probed.images}) <= 1
    assert sample(manifest(images), seed + 1) != probed


def test_of_very_many_classes_some_are_left_out() -> None:
    images = [image(f"{place:03d}", number) for place in range(2 * CLASSES) for number in range(9)]
    probed = sample(manifest(images), 0)
    assert len(probed.labels) == CLASSES
    assert Counter(each.label for each in probed.images) == dict.fromkeys(probed.labels, probe_sample.LEAST_PER_CLASS)
    assert probed.labels != sample(manifest(images), 1).labels
