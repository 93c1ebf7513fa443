"""From a listing to classes and splits."""

import unicodedata
from datetime import UTC, datetime

import pytest

from ray_cluster.train.listing import Listing, read_listing
from services.contracts.datasets import Split
from services.runtime.objects import ObjectInfo


def listing(*paths: str) -> Listing:
    return read_listing(ObjectInfo(path, 10, f"etag of {path}", datetime(2026, 1, 1, tzinfo=UTC)) for path in paths)


def labelled(found: Listing) -> dict[str, tuple[str, Split]]:
    return {file.path: (file.label, file.split) for file in found.files}


def test_a_folder_per_class_is_all_training_images() -> None:
    found = listing("cat/1.jpg", "dog/1.jpg", "dog/old/2.jpg")
    assert labelled(found) == {
        "cat/1.jpg": ("cat", Split.TRAIN),
        "dog/1.jpg": ("dog", Split.TRAIN),
        "dog/old/2.jpg": ("dog", Split.TRAIN),
    }


@pytest.mark.parametrize("train", ["train", "training", "Train"])
@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_folders_named_for_splits(train: str, validation: str) -> None:
    found = listing(f"{train}/cat/1.jpg", f"{validation}/cat/2.jpg", "test/cat/deep/3.jpg")
    assert [file.split for file in found.files] == [
        {train: Split.TRAIN, validation: Split.VALIDATION, "test": Split.TEST}[file.path.split("/")[0]]
        for file in found.files
    ]
    assert found.labels() == ["cat"]


def test_split_names_beside_other_folders_are_classes() -> None:
    assert listing("train/1.jpg", "plane/1.jpg", "ship/1.jpg").labels() == ["plane", "ship", "train"]


def test_test_and_validation_without_train_are_classes() -> None:
    assert listing("test/1.jpg", "val/1.jpg").labels() == ["test", "val"]


def test_hidden_things_are_counted_and_not_looked_at() -> None:
    found = listing(
        ".DS_Store", "cat/.DS_Store", "cat/1.jpg", "__MACOSX/cat/._1.jpg", "__MACOSX/cat/._2.jpg",
        ".git/config", "cat/Thumbs.db", "dog/desktop.ini", "cat/.thumbnails/1.jpg",
    )  # fmt: skip
    assert [file.path for file in found.files] == ["cat/1.jpg"]
    assert found.ignored_count == 7


def test_files_outside_class_folders_are_strays() -> None:
    assert listing("readme.txt", "a.jpg", "cat/1.jpg").stray_paths == ["a.jpg", "readme.txt"]
    assert listing("train/loose.jpg", "train/cat/1.jpg").stray_paths == ["train/loose.jpg"]


def test_folder_markers_are_no_files() -> None:
    assert [file.path for file in listing("cat/", "cat/1.jpg", "empty/").files] == ["cat/1.jpg"]


def test_class_order_is_the_order_of_names_as_text() -> None:
    assert listing("2/a.jpg", "10/a.jpg", "Ä/a.jpg", "a/a.jpg", "B/a.jpg").labels() == ["10", "2", "B", "a", "Ä"]


def test_the_same_unicode_name_in_two_forms_is_one_class() -> None:
    found = listing(
        f"train/{unicodedata.normalize('NFC', 'Käse')}/1.jpg", f"test/{unicodedata.normalize('NFD', 'Käse')}/2.jpg"
    )
    assert found.labels() == ["Käse"]
    assert len(found.files) == 2


def test_the_listing_changes_its_hash_when_a_file_does() -> None:
    assert listing("a/1.jpg", "b/1.jpg").sha256() == listing("b/1.jpg", "a/1.jpg").sha256()
    assert listing("a/1.jpg", "b/1.jpg").sha256() != listing("a/1.jpg", "b/2.jpg").sha256()
