"""What is uploaded of a folder."""

from pathlib import Path

import pytest

from services.client.folders import read_folder


def touch(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()


def test_files_in_class_folders_in_order_of_path(tmp_path: Path) -> None:
    touch(tmp_path, "train/b/2.jpg", "train/a/1.jpg", "test/a/ü.PNG")
    assert [file.path for file in read_folder(tmp_path).files] == ["test/a/ü.PNG", "train/a/1.jpg", "train/b/2.jpg"]


def test_files_of_no_class_are_named_and_hidden_ones_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "README.md", ".DS_Store", "a/.hidden.jpg", ".git/objects/x", "a/1.jpg")
    folder = read_folder(tmp_path)
    assert [file.path for file in folder.files] == ["a/1.jpg"]
    assert folder.skipped == ["README.md"]


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "set/a/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    assert [file.path for file in read_folder(tmp_path / "set").files] == ["a/1.jpg"]


def test_a_folder_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="nowhere"):
        read_folder(tmp_path / "nowhere")
