"""A retrained version beside its parent: which images count, and for whom."""

from ray_cluster.train.comparison import Answers, compare
from services.contracts.datasets import ImageRecord, Split
from services.contracts.jobs import ParentVersion

PARENT = ParentVersion(model_name="pets", version=1)


def image(number: int, label: str) -> ImageRecord:
    return ImageRecord(
        path=f"{label}/{number}", sha256=f"{number:064x}", size_bytes=1, width=1, height=1, label=label,
        split=Split.TEST,
    )  # fmt: skip


IMAGES = [image(0, "cat"), image(1, "cat"), image(2, "dog"), image(3, "dog"), image(4, "eel")]
# The parent knew ants, called cats "kitty", and has never heard of eels.
PARENTS = Answers(["ant", "cat", "dog"], ["cat", "ant", "dog", "cat", "dog"])
CHILD = Answers(["cat", "dog", "eel"], ["cat", "cat", "eel", "dog", "eel"])
RENAMED = {"kitty": "cat"}


def test_both_answer_for_the_images_whose_class_both_know() -> None:
    found = compare(PARENT, IMAGES, PARENTS, CHILD, frozenset(), RENAMED)
    assert (found.split, found.image_count, found.left_out_count) == ("test", 4, 1)
    assert (found.parent_accuracy, found.accuracy) == (0.5, 0.75)
    assert (found.improved_count, found.worsened_count) == (2, 1)
    assert [(each.label, each.support, each.parent_recall, each.recall) for each in found.classes] == [
        ("cat", 2, 0.5, 1.0),
        ("dog", 2, 0.5, 0.5),
    ]


def test_classes_that_came_went_and_changed_their_names_are_told() -> None:
    found = compare(PARENT, IMAGES, PARENTS, CHILD, frozenset(), RENAMED)
    assert (found.added_classes, found.removed_classes, found.renamed_classes) == (["eel"], ["ant"], RENAMED)
    gone = compare(
        PARENT, IMAGES[2:], Answers(["cat", "dog"], ["dog"] * 3), Answers(["dog", "eel"], ["dog"] * 3), None, RENAMED
    )
    assert gone.removed_classes == ["kitty"]  # the parent's own name


def test_images_that_the_parent_was_trained_on_are_counted_and_set_apart() -> None:
    found = compare(PARENT, IMAGES, PARENTS, CHILD, {IMAGES[0].sha256, IMAGES[2].sha256, "f" * 64}, RENAMED)
    assert found.trained_by_parent_count == 2
    assert (found.unseen_parent_accuracy, found.unseen_accuracy) == (0.0, 1.0)


def test_all_images_trained_on_leave_nothing_unseen() -> None:
    found = compare(PARENT, IMAGES, PARENTS, CHILD, {each.sha256 for each in IMAGES}, RENAMED)
    assert (found.trained_by_parent_count, found.unseen_parent_accuracy, found.unseen_accuracy) == (4, None, None)


def test_unknown_is_not_zero() -> None:
    found = compare(PARENT, IMAGES, PARENTS, CHILD, None, RENAMED)
    assert (found.trained_by_parent_count, found.unseen_accuracy) == (None, None)


def test_nothing_in_common() -> None:
    found = compare(PARENT, IMAGES[4:], Answers(["ant"], ["ant"]), Answers(["eel"], ["eel"]), frozenset(), {})
    assert (found.image_count, found.left_out_count, found.accuracy, found.classes) == (0, 1, None, [])
