"""What `rekindle models show` tells a person about a retrained version."""

from io import StringIO

import pytest
from rich.console import Console

from services.cli.summary import print_version
from services.contracts.backbones import BackboneName
from services.contracts.base import utc_now
from services.contracts.ids import JobId, TrunkId
from services.contracts.jobs import BackboneChoice, ParentVersion
from services.contracts.models import (
    ClassComparison,
    Evaluation,
    FitReport,
    ModelVersion,
    ParentComparison,
    WeightDecayTrial,
)
from tests.servers.choices import CHOICE

COMPARISON = ParentComparison(
    parent=ParentVersion(model_name="pets", version=1),
    split="test",
    image_count=10,
    left_out_count=4,
    parent_accuracy=0.7,
    accuracy=0.9,
    improved_count=3,
    worsened_count=1,
    trained_by_parent_count=2,
    unseen_parent_accuracy=0.625,
    unseen_accuracy=0.875,
    added_classes=["eel"],
    removed_classes=["ant"],
    renamed_classes={},
    classes=[ClassComparison(label="cat", support=10, parent_recall=0.7, recall=0.9)],
)
TRIAL = WeightDecayTrial(weight_decay=0.1, validation_loss=0.4321, validation_accuracy=0.85, epochs=4)
FIT = FitReport(epochs=31, weight_decay=0.1, trials=[TRIAL], temperature=0.815)


def shown(comparison: ParentComparison | None, fit: FitReport | None, choice: BackboneChoice | None = None) -> str:
    version = ModelVersion(
        model_name="pets",
        version=2,
        created_at=utc_now(),
        job_id=JobId("job_1"),
        backbone=BackboneName.REKINDLE_TINY,
        image_size=64,
        labels=["cat", "eel"],
        train_image_count=30,
        evaluation=Evaluation(
            split="test",
            image_count=14,
            accuracy=0.9,
            loss=0.3,
            calibration_error=0.04,
            uncalibrated_error=0.11,
            classes=[],
            confusion_matrix=[],
        ),
        fit=fit,
        parent_comparison=comparison,
        backbone_choice=choice,
        weights_sha256="0" * 64,
        trunk_id=TrunkId("t"),
    )
    out = StringIO()
    print_version(Console(file=out, width=200), version)
    return out.getvalue()


@pytest.mark.parametrize(
    "said",
    [
        "Parent pets version 1, on the 10 test images whose class it knows: accuracy 70.0%, now 90.0%",
        "(3 better, 1 worse)",
        "4 images are of classes new to it: eel",
        "Classes that are gone: ant",
        "trained on 2 of these images; on the others: 62.5%, now 87.5%",
        "calibration error 0.040, 0.110 before scaling",
        "31 epochs with weight decay 0.1; temperature 0.81",
        "0.4321",
    ],
)
def test_a_retrained_version_is_shown_beside_its_parent(said: str) -> None:
    assert said in shown(COMPARISON, FIT)


def test_what_is_not_known_is_said() -> None:
    unknown = COMPARISON.model_copy(update={"trained_by_parent_count": None})
    assert "is not known" in shown(unknown, FIT)


def test_how_its_backbone_was_chosen_is_shown() -> None:
    lines = [" ".join(line.split()) for line in shown(None, None, CHOICE).splitlines()]
    assert "rekindle_tiny bundled 32 0.01 G 94.0% ± 1.2% 0.250 chosen" in lines
    assert "resnet50 resnet.h5 224 3.86 G 95.0% ± 1.1% 0.200" in lines
    assert "mobilenet_v2 imagenet 224 left out" in lines
    assert f"Probed on 400 images of 3 classes, in 5 folds (cost: multiply-adds an image). {CHOICE.reason}" in lines


def test_a_version_without_a_parent_says_nothing_of_one() -> None:
    text = shown(None, None)
    assert "Parent" not in text
    assert "weight decay" not in text
