"""Which part of a network a job may train."""

import pytest
from pydantic import ValidationError

from services.contracts.backbones import BACKBONES, BackboneName
from services.contracts.jobs import TrainingJobSpec


def spec(train: str, backbone: BackboneName = BackboneName.REKINDLE_TINY) -> TrainingJobSpec:
    return TrainingJobSpec.model_validate({"dataset_id": "ds_1", "backbone": backbone, "train": train})


@pytest.mark.parametrize(("train", "fine_tunes"), [("head", False), ("top_blocks:5", True), ("all", True)])
def test_what_may_be_trained(train: str, fine_tunes: bool) -> None:
    assert spec(train).fine_tunes is fine_tunes


@pytest.mark.parametrize("train", ["", "tail", "top_blocks", "top_blocks:0", "top_blocks:-1", "top_blocks:1.5", "ALL"])
def test_what_has_no_meaning_is_refused(train: str) -> None:
    with pytest.raises(ValidationError, match="train"):
        spec(train)


@pytest.mark.parametrize("backbone", list(BackboneName))
def test_blocks_that_a_backbone_does_not_have_are_refused(backbone: BackboneName) -> None:
    most = BACKBONES[backbone].block_count - 1
    assert spec(f"top_blocks:{most}", backbone).train == f"top_blocks:{most}"
    with pytest.raises(ValidationError, match=rf"'top_blocks:{most}' or less"):
        spec(f"top_blocks:{most + 1}", backbone)
