"""The images of a benchmark: a folder's own, or as many as are wanted made from them."""

import hashlib
import itertools
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from services.contracts.datasets import IMAGE_SUFFIXES

SPLITS = ("train", "test")
TEST_SHARE = 0.2
LEAST_ORIGINALS = 10
"""Classes with fewer images in either split are left out."""
MADE_SIZE = (500, 375)
"""Width and height in pixels of an image that is made."""
LEAST_CROP = 0.7
"""Share of an original's sides that a crop keeps at least."""
QUALITY = 90

Originals = Mapping[str, Mapping[str, Sequence[Path]]]
"""By split and label, sorted."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """A folder with `train/` and `test/`, and a folder per class in each."""

    folder: Path
    train_count: int
    test_count: int
    label_count: int
    made: bool
    """Whether its images are crops, scaled to `MADE_SIZE`, rather than the originals themselves."""

    @property
    def image_count(self) -> int:
        return self.train_count + self.test_count

    def test_image(self) -> Path:
        """One image of the test split, always the same."""
        return min(path for path in (self.folder / "test").rglob("*") if path.is_file())


@dataclass(frozen=True, slots=True)
class Pick:
    """One image to write: an original, and the number of the crop from it; None takes it as it is."""

    original: Path
    split: str
    label: str
    crop: int | None

    def path_in(self, folder: Path) -> Path:
        digest = hashlib.sha256(str(self.original).encode()).hexdigest()[:8]
        name = self.original.name if self.crop is None else f"{self.original.stem}-c{self.crop}.jpg"
        return folder / self.split / self.label / f"{digest}-{name}"


def read_originals(folder: Path) -> Originals:
    """The images below a folder with `train/` and `test/`, or of all such folders in it together.

    Raises `ValueError` when there are none, or no two classes with enough of them.
    """
    roots = [folder] if (folder / "train").is_dir() else sorted(each.parent for each in folder.glob("*/train"))
    found: dict[str, dict[str, list[Path]]] = {split: {} for split in SPLITS}
    for root in roots:
        for split in SPLITS:
            for label in sorted(path for path in (root / split).glob("*") if path.is_dir()):
                files = sorted(path for path in label.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
                found[split][label.name if root == folder else f"{root.name}-{label.name}"] = files
    kept = [
        label
        for label, files in found["train"].items()
        if min(len(files), len(found["test"].get(label, ()))) >= LEAST_ORIGINALS
    ]
    if len(kept) < 2:
        raise ValueError(
            f"{folder} has fewer than two classes with {LEAST_ORIGINALS} images in each of train/ and test/: name a "
            "folder that has, or a folder of such folders"
        )
    return {split: {label: found[split][label] for label in kept} for split in SPLITS}


def split_counts(image_count: int) -> dict[str, int]:
    """How many of so many images are for training, and how many for the test."""
    test = round(image_count * TEST_SHARE)
    return {"train": image_count - test, "test": test}


def must_be_made(originals: Originals, image_count: int) -> bool:
    """Whether there are fewer originals than that, in either split."""
    counts = split_counts(image_count)
    return any(sum(map(len, originals[split].values())) < counts[split] for split in SPLITS)


def pick(originals: Originals, image_count: int, *, made: bool, first_crop: int = 0) -> list[Pick]:
    """So many images, spread over the classes as evenly as they go. More of them begin with the fewer.

    Crops of one original stay in its split. With another `first_crop` (in steps of 1,000) no crop is the same.
    """
    return [
        each
        for split, count in split_counts(image_count).items()
        for each in itertools.islice(_in_turn(originals[split], split, made=made, first_crop=first_crop), count)
    ]


def write(picks: Sequence[Pick], folder: Path, processes: int) -> ImageSet:
    """The images as files in a folder that is empty or absent."""
    chunks = [picks[start::processes] for start in range(processes)]
    with ProcessPoolExecutor(processes) as pool:
        for _ in pool.map(_write_all, chunks, [folder] * processes):
            pass
    counts = {split: sum(each.split == split for each in picks) for split in SPLITS}
    labels = {each.label for each in picks}
    return ImageSet(folder, counts["train"], counts["test"], len(labels), picks[0].crop is not None)


def link(images: ImageSet, folder: Path) -> ImageSet:
    """The same files in another folder, which may have some of them already: those stay as they are."""
    for file in images.folder.rglob("*"):
        linked = folder / file.relative_to(images.folder)
        if file.is_file() and not linked.exists():
            linked.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, linked)
    return replace(images, folder=folder)


def _in_turn(by_label: Mapping[str, Sequence[Path]], split: str, *, made: bool, first_crop: int) -> Iterator[Pick]:
    """One of each class, then the next of each, and so on; crops without end."""
    position = 0
    while made or any(position < len(files) for files in by_label.values()):
        for label, files in by_label.items():
            if made:
                crop, number = divmod(position, len(files))
                yield Pick(files[number], split, label, first_crop + crop)
            elif position < len(files):
                yield Pick(files[position], split, label, None)
        position += 1


def _write_all(picks: Sequence[Pick], folder: Path) -> None:
    for each in picks:
        path = each.path_in(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        if each.crop is None:
            shutil.copyfile(each.original, path)
        else:
            crop_image(each.original, each.crop).save(path, quality=QUALITY)


def crop_image(original: Path, number: int) -> Image.Image:
    """One of an original's crops, `MADE_SIZE` pixels; mirrored every other time."""
    draw = random.Random(f"{original.name}:{number}")
    with Image.open(original) as opened:
        image = opened.convert("RGB")
    share = draw.uniform(LEAST_CROP, 1.0)
    width, height = share * image.width, share * image.height
    left, top = draw.uniform(0, image.width - width), draw.uniform(0, image.height - height)
    made = image.resize(MADE_SIZE, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    return made.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else made
