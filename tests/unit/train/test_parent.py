"""What is read of the version that a job goes on from."""

from pathlib import Path
from typing import Any

import pytest

from ray_cluster.train.parent import find_trained_images, read_parent
from services.contracts import names
from services.contracts.datasets import DatasetManifest, ImageRecord, PreflightReport, Split
from services.contracts.errors import ParentUnusable
from services.contracts.ids import DatasetId, TrunkId
from services.contracts.jobs import TrainingJobSpec
from services.contracts.models import ModelManifest
from services.runtime.objects import ObjectStore, open_store
from tests.servers.training import make_manifest, put_manifest


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path.as_uri())


def spec(**fields: Any) -> TrainingJobSpec:
    return TrainingJobSpec.model_validate({"dataset_id": "ds_1", "backbone": "rekindle_tiny"} | fields)


def retraining(**fields: Any) -> TrainingJobSpec:
    return spec(parent={"model_name": "flowers", "version": 1}, **fields)


def test_the_parents_classes_are_called_as_the_dataset_calls_them(store: ObjectStore) -> None:
    manifest = make_manifest(1)
    put_manifest(store, manifest)
    parent = read_parent(store, retraining(rename_classes={"rose": "red rose"}), manifest.trunk)
    assert parent is not None
    assert parent.labels == ["daisy", "red rose"]
    assert parent.warm_start().tail == manifest.tail


def test_no_parent(store: ObjectStore) -> None:
    assert read_parent(store, spec(), make_manifest(1).trunk) is None


def test_a_parent_that_is_gone_or_on_another_trunk_is_said(store: ObjectStore) -> None:
    manifest = make_manifest(1)
    with pytest.raises(ParentUnusable, match="is gone"):
        read_parent(store, retraining(), manifest.trunk)
    put_manifest(store, manifest)
    with pytest.raises(ParentUnusable, match="another trunk"):
        read_parent(store, retraining(), manifest.trunk.model_copy(update={"trunk_id": TrunkId("b" * 64)}))


def test_a_parent_that_was_fine_tuned_is_said(store: ObjectStore) -> None:
    manifest = make_manifest(1).model_copy(update={"tail_kind": "network"})
    put_manifest(store, manifest)
    with pytest.raises(ParentUnusable, match="was fine-tuned"):
        read_parent(store, retraining(), manifest.trunk)


def dataset_manifest(fingerprint: str, *splits: Split, held_out: bool) -> DatasetManifest:
    images = [
        ImageRecord(path=f"a/{n}", sha256=f"{n:064x}", size_bytes=1, width=1, height=1, label="a", split=split)
        for n, split in enumerate(splits)
    ]
    report = PreflightReport(
        image_count=len(images), classes=[], quarantined=[], duplicate_count=0, warnings=[], ignored_count=0
    )
    return DatasetManifest(
        dataset_id=DatasetId("ds_1"), fingerprint=fingerprint, labels=["a"], images=images,
        validation_held_out=held_out, report=report,
    )  # fmt: skip


def trained_on(dataset: DatasetManifest) -> ModelManifest:
    return make_manifest(1).model_copy(update={"spec": spec(), "dataset_content_sha256": dataset.content_sha256()})


ALL = (Split.TRAIN, Split.VALIDATION, Split.TEST)


@pytest.mark.parametrize(("held_out", "trained"), [(True, {0, 1}), (False, {0})])
def test_the_images_that_the_parent_was_trained_on(store: ObjectStore, held_out: bool, trained: set[int]) -> None:
    used = dataset_manifest("1" * 64, *ALL, held_out=held_out)
    other = dataset_manifest("0" * 64, Split.VALIDATION, Split.TRAIN, Split.TRAIN, held_out=held_out)
    for manifest in (other, used):
        key = names.dataset_manifest(manifest.dataset_id, manifest.fingerprint)
        store.put(key, manifest.model_dump_json().encode())
    assert find_trained_images(store, trained_on(used)) == {f"{n:064x}" for n in trained}


def test_a_fine_tuned_parent_would_not_have_learned_from_validation_images(store: ObjectStore) -> None:
    used = dataset_manifest("1" * 64, *ALL, held_out=True)
    store.put(names.dataset_manifest(used.dataset_id, used.fingerprint), used.model_dump_json().encode())
    parent = trained_on(used).model_copy(update={"spec": spec(train="all")})
    assert find_trained_images(store, parent) == {f"{0:064x}"}


def test_nobody_knows_what_the_parent_was_trained_on(store: ObjectStore) -> None:
    assert find_trained_images(store, trained_on(dataset_manifest("1" * 64, *ALL, held_out=True))) is None
    assert find_trained_images(store, make_manifest(1)) is None
