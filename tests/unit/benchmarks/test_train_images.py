"""The training benchmark's images: spread over the classes, the same every time, and never in both splits."""

from pathlib import Path

import pytest
from PIL import Image

from tests.benchmarks.images import (
    MADE_SIZE,
    ImageSet,
    Originals,
    link,
    must_be_made,
    pick,
    read_originals,
    write,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two datasets: three classes with enough images, one of them large, and one with too few to test on."""
    numbers = {"fruit/apple": (14, 10), "fruit/pear": (40, 12), "fruit/plum": (12, 2), "trees/oak": (11, 11)}
    for name, counts in numbers.items():
        for split, count in zip(("train", "test"), counts, strict=True):
            place = tmp_path / "originals" / Path(name).parent / split / Path(name).name
            place.mkdir(parents=True)
            for number in range(count):
                Image.effect_noise((60 + number, 50), 64).convert("RGB").save(place / f"{number:02}.jpg")
    return tmp_path / "originals"


@pytest.fixture
def originals(folder: Path) -> Originals:
    return read_originals(folder)


def test_classes_without_enough_images_are_left_out(originals: Originals) -> None:
    assert list(originals["train"]) == ["fruit-apple", "fruit-pear", "trees-oak"]
    assert {split: [len(files) for files in labels.values()] for split, labels in originals.items()} == {
        "train": [14, 40, 11],
        "test": [10, 12, 11],
    }


def test_one_dataset_keeps_its_own_labels(folder: Path) -> None:
    assert list(read_originals(folder / "fruit")["test"]) == ["apple", "pear"]


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than two classes"):
        read_originals(tmp_path)


def test_originals_are_taken_evenly_while_they_last(originals: Originals) -> None:
    picks = pick(originals, 75, made=False)
    train = [each.label for each in picks if each.split == "train"]
    assert {label: train.count(label) for label in originals["train"]} == {
        "fruit-apple": 14,
        "fruit-pear": 35,
        "trees-oak": 11,
    }
    assert sum(each.split == "test" for each in picks) == 15
    assert len({each.original for each in picks}) == len(picks)


@pytest.mark.parametrize(("image_count", "made"), [(81, False), (82, True), (1000, True)])
def test_images_are_made_when_either_split_has_too_few(originals: Originals, image_count: int, made: bool) -> None:
    assert must_be_made(originals, image_count) is made


def test_more_images_begin_with_the_fewer(originals: Originals) -> None:
    assert set(pick(originals, 200, made=True)) < set(pick(originals, 220, made=True))


def test_a_made_image_is_in_the_split_of_its_original_and_made_once(originals: Originals) -> None:
    picks = pick(originals, 400, made=True)
    assert len(picks) == len(set(picks)) == 400
    assert all(each.original in originals[each.split][each.label] for each in picks)
    later = pick(originals, 400, made=True, first_crop=1000)
    assert not set(picks) & set(later)


def test_images_are_the_same_bytes_every_time(originals: Originals, tmp_path: Path) -> None:
    picks = pick(originals, 100, made=True)
    first, again = (write(picks, tmp_path / name, processes) for name, processes in (("one", 1), ("two", 2)))
    contents = [
        {path.relative_to(images.folder): path.read_bytes() for path in images.folder.rglob("*.jpg")}
        for images in (first, again)
    ]
    assert contents[0] == contents[1]
    assert (first.train_count, first.test_count, first.label_count) == (80, 20, 3)
    assert len(set(contents[0].values())) == len(contents[0]) == first.image_count
    with Image.open(first.test_image()) as image:
        assert image.size == MADE_SIZE


def test_a_folder_grows_by_what_it_has_not(tmp_path: Path) -> None:
    for name, labels in (("few", ("a",)), ("more", ("a", "b"))):
        for label in labels:
            (tmp_path / name / "train" / label).mkdir(parents=True)
            (tmp_path / name / "train" / label / "1.jpg").write_text(label)
    few, more = (ImageSet(tmp_path / name, 1, 0, 1, False) for name in ("few", "more"))
    own = link(few, tmp_path / "own")
    before = (own.folder / "train" / "a" / "1.jpg").stat()
    grown = link(more, own.folder)
    assert grown.folder == own.folder
    assert sorted(path.name for path in (own.folder / "train").iterdir()) == ["a", "b"]
    assert (own.folder / "train" / "a" / "1.jpg").stat().st_ino == before.st_ino
