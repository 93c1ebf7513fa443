"""`backbone: auto` on a real cluster: what is chosen, that it is chosen once, and that no feature is computed twice."""

from pathlib import Path

import pytest

from services.contracts import names
from services.contracts.backbones import BackboneName
from services.contracts.jobs import BackboneChoice, JobEventType, Stage
from tests.cluster.attempts import Attempts

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CLASSES, TRAIN, TEST = 3, 12, 4
"""Of the drawings."""


def images_at(attempts: Attempts, job: str, attempt: int) -> dict[Stage, int]:
    """By stage, images that a trunk had to run over, each backbone's counted."""
    return {
        record.stage: int(str(record.data["total"]))
        for record in attempts.records(job, attempt)
        if record.type is JobEventType.PROGRESS and record.data["unit"] == "images"
    }


def test_a_backbone_is_chosen_once_and_its_features_are_kept(
    attempts: Attempts, drawings: Path, tmp_path: Path
) -> None:
    tried = [
        {"backbone": "rekindle_tiny"},
        {"backbone": "rekindle_tiny", "image_size": 32},
        {"backbone": "rekindle_tiny", "weights": {"uri": (tmp_path / "gone.h5").as_uri()}},
    ]
    job = attempts.accept(drawings, "chosen", backbone="auto", candidates=tried, seed=3)
    assert attempts.run(job) == 0, attempts.log(job)

    choice = BackboneChoice.model_validate_json(attempts.store.get(names.job_backbone_choice(job)))
    assert [(each.image_size, each.accuracy > 0.8) for each in choice.candidates] == [(64, True), (32, True)]
    assert choice.chosen.image_size == 32, "the cheaper one"
    assert (choice.image_count, choice.class_count, choice.fold_count) == (CLASSES * TRAIN, CLASSES, 5)
    assert ["there is no weights file" in each.message for each in choice.left_out] == [True]
    warnings = [each.message for each in attempts.records(job) if each.type is JobEventType.WARNING]
    assert any("was not tried" in warning for warning in warnings)
    assert attempts.stages(job)[Stage.CHOOSE].backbone_choice == choice
    assert images_at(attempts, job, 1)[Stage.FEATURES] == CLASSES * TEST, "features were computed twice"

    model = attempts.model(job)
    assert (model.trunk.backbone, model.trunk.image_size) == (BackboneName.REKINDLE_TINY, 32)
    assert model.backbone_choice == choice
    assert model.spec is not None
    assert (model.spec.backbone, model.spec.image_size, model.spec.candidates) == ("rekindle_tiny", 32, None)

    told = choice.model_copy(update={"reason": "as the first attempt said"})
    attempts.store.put(names.job_backbone_choice(job), told.model_dump_json().encode())
    assert attempts.run(job, 2) == 0, attempts.log(job, 2)
    again = attempts.stages(job, 2)[Stage.CHOOSE]
    assert (again.skipped, again.backbone_choice) == (True, told)
    assert all(timing.skipped for stage, timing in attempts.stages(job, 2).items() if stage is not Stage.EVALUATE)
    assert attempts.model(job, 2).tail_sha256 == model.tail_sha256
