"""What a dataset's folders say."""

from pathlib import Path

import pytest

from services.contracts.datasets import Split
from services.contracts.errors import ClassTooSmall, DatasetEmpty, DatasetTooFewClasses, SourceUnreadable
from services.runtime.objects import open_store
from services.training.datasets import layout
from services.training.datasets.layout import read_layout


def fill(folder: Path, *paths: str) -> Path:
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return folder


def read(folder: Path) -> layout.DatasetLayout:
    return read_layout(open_store(folder.as_uri()))


def test_a_folder_per_class(tmp_path: Path) -> None:
    found = read(fill(tmp_path, "cat/1.jpg", "cat/2.PNG", "dog/a/b/1.webp", "dog/2.jpg", "README.txt"))
    assert (found.classes, found.splits, found.image_count) == (["cat", "dog"], [Split.TRAIN], 4)


def test_split_folders_in_any_spelling(tmp_path: Path) -> None:
    found = read(fill(tmp_path, "Training/cat/1.jpg", "Training/dog/1.jpg", "VAL/cat/1.jpg", "test/dog/1.jpg"))
    assert (found.classes, found.splits) == (["cat", "dog"], [Split.TRAIN, Split.VALIDATION, Split.TEST])


def test_train_and_test_beside_a_class_are_classes(tmp_path: Path) -> None:
    found = read(fill(tmp_path, *(f"{name}/{n}.jpg" for name in ("train", "tram", "test") for n in (1, 2))))
    assert found.classes == ["test", "train", "tram"]


def test_test_and_val_without_train_are_classes(tmp_path: Path) -> None:
    found = read(fill(tmp_path, *(f"{name}/{n}.jpg" for name in ("val", "test") for n in (1, 2))))
    assert found.classes == ["test", "val"]


def test_hidden_files_and_folders_do_not_count(tmp_path: Path) -> None:
    paths = [f"{name}/{n}.jpg" for name in ("a", "b", ".git", "__MACOSX") for n in (1, 2)]
    found = read(fill(tmp_path, *paths, "a/._1.jpg", "a/.thumbs/9.jpg", "b/Thumbs.db"))
    assert (found.classes, found.image_count) == (["a", "b"], 4)


def test_names_are_only_names_and_order_is_by_name(tmp_path: Path) -> None:
    found = read(fill(tmp_path, *(f"{name}/{n}.jpg" for name in ("10", "2", "été", "花") for n in (1, 2))))
    assert found.classes == ["10", "2", "été", "花"]


def test_the_same_name_typed_on_two_systems_is_one_class(tmp_path: Path) -> None:
    folder = fill(tmp_path, "train/\u00e9/1.jpg", "train/z/1.jpg", "val/e\u0301/1.jpg", "val/z/1.jpg")
    assert read(folder).classes == ["z", "\u00e9"]


def test_a_folder_without_images_is_no_class(tmp_path: Path) -> None:
    found = read(fill(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "docs/readme.txt"))
    assert found.classes == ["a", "b"]


def test_more_files_than_are_looked_at_have_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "FILES_PER_CLASS", 3)
    found = read(fill(tmp_path, *(f"a/{n}.jpg" for n in range(4)), "b/1.jpg", "b/2.jpg"))
    assert found.image_count is None


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetEmpty, match="no folders and no images"):
        read(tmp_path)


def test_images_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetEmpty, match="images lie at the root"):
        read(fill(tmp_path, "1.jpg"))


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(DatasetEmpty, match="no images to train on"):
        read(fill(tmp_path, "a/1.txt", "b/1.txt"))


def test_zero_bytes_are_no_image(tmp_path: Path) -> None:
    folder = fill(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg")
    (folder / "b/2.jpg").write_bytes(b"")
    with pytest.raises(ClassTooSmall, match="'b'"):
        read(folder)


def test_one_class_only(tmp_path: Path) -> None:
    with pytest.raises(DatasetTooFewClasses, match="'cat'"):
        read(fill(tmp_path, "cat/1.jpg", "cat/2.jpg"))


def test_a_class_with_one_image(tmp_path: Path) -> None:
    with pytest.raises(ClassTooSmall, match="'dog'"):
        read(fill(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/1.jpg"))


def test_a_class_with_one_image_is_enough_beside_a_validation_split(tmp_path: Path) -> None:
    found = read(fill(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg"))
    assert found.classes == ["cat", "dog"]


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable):
        read(tmp_path / "missing")
