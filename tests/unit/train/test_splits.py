"""The validation split is a pure function of the seed and of each image's bytes."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_cluster.train.splits import hold_out
from services.contracts.errors import ClassTooSmall


def sha256s(label: str, count: int) -> list[str]:
    return [hashlib.sha256(f"{label}{index}".encode()).hexdigest() for index in range(count)]


classes = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(2, 60), min_size=1, max_size=5).map(
    lambda sizes: {label: sha256s(label, count) for label, count in sizes.items()}
)
fractions = st.floats(0.01, 0.5)
seeds = st.integers(0, 2**31 - 1)


@given(classes, fractions, seeds)
def test_every_class_keeps_images_on_both_sides_in_about_the_asked_share(
    by_label: dict[str, list[str]], fraction: float, seed: int
) -> None:
    held_out = hold_out(by_label, fraction, seed)
    for images in by_label.values():
        count = len(held_out & set(images))
        assert 1 <= count <= len(images) - 1
        assert abs(count - fraction * len(images)) <= 1


@given(classes, fractions, seeds)
def test_neither_the_order_of_images_nor_of_classes_matters(
    by_label: dict[str, list[str]], fraction: float, seed: int
) -> None:
    shuffled = {label: sorted(images, reverse=True) for label, images in reversed(by_label.items())}
    assert hold_out(shuffled, fraction, seed) == hold_out(by_label, fraction, seed)


def test_another_seed_holds_out_other_images() -> None:
    by_label = {"a": sha256s("a", 50), "b": sha256s("b", 50)}
    assert hold_out(by_label, 0.2, 0) != hold_out(by_label, 0.2, 1)


def test_an_added_image_moves_at_most_one_other_of_its_class() -> None:
    images = sha256s("a", 41)
    before, after = hold_out({"a": images[:40]}, 0.2, 7), hold_out({"a": images}, 0.2, 7)
    assert len(before - after) <= 1


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(ClassTooSmall, match="'solo' has 1 usable image"):
        hold_out({"solo": sha256s("solo", 1), "rest": sha256s("rest", 9)}, 0.2, 0)
