"""The demo's options, and which images it asks about."""

from pathlib import Path

import pytest

from services.contracts.backbones import BackboneName
from services.contracts.datasets import ImageRecord, Split
from services.local.demo import choose_images, main, parse_options


def image(path: str, split: Split) -> ImageRecord:
    label = path.partition("/")[0]
    return ImageRecord(path=path, sha256="0" * 64, size_bytes=1, width=1, height=1, label=label, split=split)


def test_without_options_it_draws() -> None:
    options = parse_options(["--images", "", "--backbone", "", "--weights", ""])
    assert (options.images, options.backbone, options.weights) == (None, BackboneName.REKINDLE_TINY, None)


def test_photographs_get_a_backbone_made_for_photographs(tmp_path: Path) -> None:
    assert parse_options(["--images", str(tmp_path)]).backbone is BackboneName.MOBILENET_V2
    given = parse_options(["--images", str(tmp_path), "--backbone", "resnet50", "--weights", "w.h5"])
    assert (given.backbone, given.weights) == (BackboneName.RESNET50, "w.h5")


def test_a_folder_that_is_not_there_is_said_so_and_nothing_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--images", str(tmp_path / "nowhere")]) == 1
    assert "is not a folder" in capsys.readouterr().out


def test_test_images_of_every_class_are_chosen_before_validation_images() -> None:
    images = [image(f"{label}/{n}.jpg", Split.TEST) for label in "abc" for n in range(9)]
    images += [image("a/v.jpg", Split.VALIDATION), image("a/t.jpg", Split.TRAIN)]
    chosen = choose_images(images, 6)
    assert [one.path for one in chosen] == ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg", "c/0.jpg", "c/1.jpg"]


def test_validation_images_are_chosen_where_there_are_no_test_images() -> None:
    images = [image("a/v.jpg", Split.VALIDATION), image("b/t.jpg", Split.TRAIN)]
    assert [one.path for one in choose_images(images)] == ["a/v.jpg"]
    assert choose_images([image("b/t.jpg", Split.TRAIN)]) == []
