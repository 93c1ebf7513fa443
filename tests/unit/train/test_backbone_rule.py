"""The rule that `backbone: auto` chooses by: the cheapest within one standard error of the best."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_cluster.train.backbone_rule import Scored, choose
from ray_cluster.train.probe import ProbeScore
from services.contracts.backbones import BACKBONES, BackboneName, multiply_adds
from services.contracts.jobs import BackboneChoice, LeftOutBackbone

COUNT = 200


def scored(backbone: BackboneName, right_count: int, loss: float = 0.5, size: int | None = None) -> Scored:
    facts = BACKBONES[backbone]
    image_size = size or facts.default_image_size
    return Scored(backbone, "imagenet", image_size, facts.feature_dim, ProbeScore(COUNT, right_count, loss))


def chosen(*candidates: Scored) -> BackboneChoice:
    return choose(candidates, [], class_count=2, fold_count=5)


some = st.lists(
    st.builds(
        scored,
        backbone=st.sampled_from(BackboneName),
        right_count=st.integers(0, COUNT),
        loss=st.floats(0, 3),
        size=st.sampled_from([96, 224]),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda each: (each.backbone, each.image_size),
)


@given(some)
def test_what_is_chosen_is_good_enough_and_nothing_cheaper_is(candidates: list[Scored]) -> None:
    choice = chosen(*candidates)
    assert [each.chosen for each in choice.candidates].count(True) == 1
    best = max(candidates, key=lambda each: each.accuracy)
    bar = best.accuracy - best.standard_error
    took = choice.chosen
    assert took.accuracy >= bar
    assert all(each.accuracy < bar for each in candidates if each.cost < (took.multiply_adds, took.feature_dim))
    assert took.accuracy_difference == took.accuracy - best.accuracy <= 0


@given(some)
def test_the_order_of_the_candidates_does_not_matter(candidates: list[Scored]) -> None:
    assert chosen(*candidates).chosen == chosen(*reversed(candidates)).chosen


@given(some)
def test_one_that_is_dearer_and_worse_changes_nothing(candidates: list[Scored]) -> None:
    took = chosen(*candidates).chosen
    worse = scored(BackboneName.CONVNEXT_TINY, int(took.accuracy * COUNT), 9.0, 1024)
    still = chosen(*candidates, worse).chosen
    assert (still.backbone, still.image_size) == (took.backbone, took.image_size)


def test_few_images_that_are_all_right_still_leave_room_for_error() -> None:
    cheap, dear = (
        Scored(name, "imagenet", 224, 8, ProbeScore(20, right, 0.1))
        for name, right in ((BackboneName.MOBILENET_V2, 19), (BackboneName.RESNET50, 20))
    )
    choice = choose([dear, cheap], [], class_count=2, fold_count=5)
    assert choice.chosen.backbone is BackboneName.MOBILENET_V2
    assert choice.candidates[0].standard_error > 0


@pytest.mark.parametrize(
    ("right", "said"),
    [
        ((180, 199), "resnet50 at 224 px (99.5%) is the most accurate; none is within one standard error (0.8 points)"),
        ((198, 199), "mobilenet_v2 at 224 px (99.0%) is the cheapest of 2 within one standard error (0.8 points)"),
        ((199, 198), "mobilenet_v2 at 224 px (99.5%) is the most accurate, and the cheapest of 2 within"),
    ],
)
def test_the_reason_is_said(right: tuple[int, int], said: str) -> None:
    names = (BackboneName.MOBILENET_V2, BackboneName.RESNET50)
    assert said in chosen(*(scored(name, count) for name, count in zip(names, right, strict=True))).reason


def test_one_that_is_left_alone_is_taken_and_the_others_are_told() -> None:
    gone = LeftOutBackbone(backbone=BackboneName.RESNET50, weights="imagenet", image_size=224, message="no network")
    choice = choose([scored(BackboneName.MOBILENET_V2, 3)], [gone], class_count=2, fold_count=5)
    assert choice.left_out == [gone]
    assert "the only candidate" in choice.reason


def test_cost_grows_with_the_images_area() -> None:
    for name, facts in BACKBONES.items():
        assert multiply_adds(name, facts.default_image_size) == facts.multiply_adds
        assert multiply_adds(name, 2 * facts.default_image_size) == 4 * facts.multiply_adds
