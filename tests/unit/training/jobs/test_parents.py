"""What a retraining job takes from its parent, and what of it cannot be."""

from typing import Any

import pytest

from services.contracts.backbones import BACKBONES, BackboneName
from services.contracts.base import utc_now
from services.contracts.datasets import Dataset, DatasetLayout, DatasetState, Split, UploadSource
from services.contracts.errors import ParentUnusable
from services.contracts.ids import DatasetId
from services.contracts.jobs import TrainingJobSpec, WeightsUri
from services.contracts.models import ModelManifest
from services.training.jobs.parents import resolve
from tests.servers.training import make_manifest

SHA256 = "1" * 64
FILE = {"uri": "s3://mine/w.h5"}


def dataset(*classes: str) -> Dataset:
    layout = DatasetLayout(splits=[Split.TRAIN], classes=list(classes or ("daisy", "rose", "tulip")), image_count=9)
    return Dataset(
        id=DatasetId("ds_1"),
        name="garden",
        source=UploadSource(),
        state=DatasetState.READY,
        layout=layout,
        created_at=utc_now(),
    )


def parent(**trunk: Any) -> ModelManifest:
    made = make_manifest(3)
    return made.model_copy(update={"trunk": made.trunk.model_copy(update=trunk)})


def spec(**fields: Any) -> TrainingJobSpec:
    return TrainingJobSpec.model_validate({"dataset_id": "ds_1", "parent": {"model_name": "flowers"}} | fields)


def test_what_the_spec_leaves_out_is_the_parents() -> None:
    resolved = resolve(spec(), parent(), dataset())
    assert resolved.parent is not None
    assert resolved.parent.version == 3
    assert (resolved.backbone, resolved.weights, resolved.image_size) == ("rekindle_tiny", "bundled", 64)
    assert resolved.model_name == "flowers"
    assert resolve(spec(model_name="other"), parent(), dataset()).model_name == "other"


def test_a_weights_file_is_taken_by_its_content() -> None:
    resolved = resolve(spec(), parent(weights=WeightsUri(uri="s3://mine/w.h5"), weights_sha256=SHA256), dataset())
    assert resolved.weights == WeightsUri(uri="s3://mine/w.h5", sha256=SHA256)


@pytest.mark.parametrize(
    "fields",
    [
        {"backbone": "rekindle_tiny", "weights": "bundled", "image_size": 64},
        {"rename_classes": {"rose": "tulip"}},
        {"rename_classes": {"rose": "daisy", "daisy": "rose"}},
    ],
)
def test_what_fits_the_parent_is_accepted(fields: dict[str, Any]) -> None:
    resolved = resolve(spec(**fields), parent(), dataset())
    assert resolved.rename_classes == fields.get("rename_classes", {})


@pytest.mark.parametrize(
    ("trunk", "fields", "said"),
    [
        ({}, {"backbone": "mobilenet_v2"}, "leave `backbone` out"),
        ({}, {"image_size": 96}, "leave `image_size` out"),
        ({}, {"weights": "imagenet"}, "leave `weights` out"),
        ({}, {"weights": FILE}, "leave `weights` out"),
        ({"weights": WeightsUri(uri="s3://mine/v.h5")}, {"weights": FILE}, "leave `weights` out"),
        ({"weights": WeightsUri(**FILE)}, {"weights": FILE | {"sha256": "2" * 64}}, "leave `weights` out"),
        ({}, {"rename_classes": {"lily": "tulip"}}, "'daisy', 'rose'"),
        ({}, {"rename_classes": {"rose": "lily"}}, "'daisy', 'rose', 'tulip'"),
        ({}, {"rename_classes": {"rose": "daisy"}}, "two classes 'daisy'"),
        ({}, {"train": "top_blocks:12"}, "'top_blocks:5' or less"),
    ],
)
def test_what_does_not_fit_the_parent_is_refused(trunk: dict[str, Any], fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ParentUnusable) as refused:
        resolve(spec(**fields), parent(**trunk), dataset())
    assert said in refused.value.message


def test_a_parent_that_was_fine_tuned_is_refused() -> None:
    network = parent().model_copy(update={"tail_kind": "network"})
    with pytest.raises(ParentUnusable, match="was fine-tuned"):
        resolve(spec(), network, dataset())


def test_the_blocks_are_counted_on_the_parents_backbone() -> None:
    deep = parent(backbone=BackboneName.EFFICIENTNET_V2_B3)
    most = BACKBONES[BackboneName.EFFICIENTNET_V2_B3].block_count - 1
    assert resolve(spec(train=f"top_blocks:{most}"), deep, dataset()).train == f"top_blocks:{most}"


def test_renaming_needs_a_parent() -> None:
    with pytest.raises(ValueError, match="name the `parent`"):
        spec(parent=None, rename_classes={"a": "b"})
