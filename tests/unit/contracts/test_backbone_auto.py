"""What `backbone: auto` may choose from."""

from typing import Any

import pytest
from pydantic import ValidationError

from services.contracts.backbones import BACKBONES, multiply_adds
from services.contracts.jobs import DEFAULT_CANDIDATES, TrainingJobSpec

TINY = {"backbone": "rekindle_tiny"}
FILE = {"uri": "s3://mine/w.h5"}


def spec(**fields: Any) -> TrainingJobSpec:
    return TrainingJobSpec.model_validate({"dataset_id": "ds_1", "backbone": "auto", **fields})


def test_by_default_it_is_several_with_imagenet_weights_cheapest_first() -> None:
    found = spec(weights="imagenet").possible_backbones()
    assert [each.backbone for each in found] == list(DEFAULT_CANDIDATES)
    assert {each.resolved_weights() for each in found} == {"imagenet"}
    costs = [multiply_adds(each.backbone, each.resolved_image_size()) for each in found]
    assert costs == sorted(costs)
    sizes = [BACKBONES[each.backbone].default_image_size for each in found]
    assert [each.resolved_image_size() for each in spec().possible_backbones()] == sizes
    assert {each.resolved_image_size() for each in spec(image_size=96).possible_backbones()} == {96}


def test_a_job_that_names_its_backbone_has_that_one_alone() -> None:
    (only,) = spec(**TINY, image_size=48).possible_backbones()
    assert (only.backbone, only.resolved_weights(), only.resolved_image_size()) == ("rekindle_tiny", "bundled", 48)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"weights": "bundled"}, "name `candidates`, each with its `backbone` and `weights`"),
        ({"weights": FILE}, "name `candidates`"),
        ({"image_size": 16}, "mobilenet_v2: use 32 or more"),
        ({"candidates": [TINY]}, "at least 2"),
        ({"candidates": [TINY, {**TINY, "image_size": 16}]}, "use 32 or more"),
        ({"candidates": [TINY, {**TINY, "weights": "imagenet"}]}, "has no 'imagenet' weights"),
        ({"candidates": [TINY, {**TINY, "image_size": 64}]}, "two candidates are the same"),
        ({"candidates": [TINY, {**TINY, "image_size": 32}], "image_size": 32}, "each candidate's own"),
        ({"candidates": [TINY, {**TINY, "image_size": 32}], "weights": "bundled"}, "each candidate's own"),
        ({"backbone": "resnet50", "candidates": [TINY, {**TINY, "image_size": 32}]}, "the backbone is resnet50"),
        ({"candidates": [TINY, {"backbone": "resnet50"}], "train": "top_blocks:7"}, "'top_blocks:5' or less"),
        ({"parent": {"model_name": "flowers"}}, "keeps its parent's backbone"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused_with_what_to_do(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace("(", r"\(")):
        spec(**fields)
