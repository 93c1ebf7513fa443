"""Preflight on real files: what is used, what is set aside and why, and what is refused."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_cluster.train import preflight
from ray_cluster.train.inspection import inspect_files
from ray_cluster.train.listing import read_listing
from services.contracts.datasets import DatasetManifest, QuarantineReason, Split
from services.contracts.errors import ClassTooSmall, DatasetEmpty, DatasetTooFewClasses, TooManyQuarantined
from services.contracts.ids import DatasetId
from services.contracts.jobs import TrainingJobSpec
from services.runtime.objects import open_store

DATASET = DatasetId("ds_test")


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class Folder:
    """A dataset on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, path: str, data: bytes) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def fill(self, *classes: str, count: int = 6, first_seed: int = 0) -> None:
        for number, name in enumerate(classes):
            for index in range(count):
                self.add(f"{name}/{index}.png", encoded(picture(first_seed + 1000 * number + index)))

    def preflight(self, **spec: object) -> DatasetManifest:
        source = open_store(self.root.as_uri())
        listing = read_listing(source.list(""))
        preflight.check_listing(listing)
        wanted = TrainingJobSpec.model_validate({"dataset_id": DATASET, "max_quarantined_fraction": 1.0, **spec})
        return preflight.judge(DATASET, listing, inspect_files(source, listing.files), wanted)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    root = tmp_path / "images"
    root.mkdir()
    return Folder(root)


def quarantined(manifest: DatasetManifest) -> dict[str, QuarantineReason]:
    return {file.path: file.reason for file in manifest.report.quarantined}


# --- kinds of files ---


def cut_short(data: bytes) -> bytes:
    return data[: len(data) // 2]


def huge_png() -> bytes:
    """A PNG header that claims 100,000 x 100,000 pixels."""
    data = bytearray(encoded(picture(0)))
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


BAD_FILES = {
    "zero.jpg": (b"", QuarantineReason.ZERO_BYTES),
    "cut.jpg": (cut_short(encoded(picture(1, size=(300, 200)), "JPEG")), QuarantineReason.CORRUPT),
    "cut.png": (cut_short(encoded(picture(1, size=(300, 200)))), QuarantineReason.CORRUPT),
    "text.jpg": (b"this is no image", QuarantineReason.NOT_AN_IMAGE),
    "notes.txt": (b"hello", QuarantineReason.NOT_AN_IMAGE),
    "table.csv": (encoded(picture(2)), QuarantineReason.NOT_AN_IMAGE),
    "html.png": (b"<html><body>404</body></html>", QuarantineReason.NOT_AN_IMAGE),
    "bomb.png": (huge_png(), QuarantineReason.TOO_MANY_PIXELS),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_used_is_set_aside_with_its_reason(folder: Folder, name: str) -> None:
    data, reason = BAD_FILES[name]
    folder.fill("cat", "dog")
    folder.add(f"cat/{name}", data)
    manifest = folder.preflight()
    assert quarantined(manifest) == {f"cat/{name}": reason}
    assert manifest.report.quarantined[0].message
    assert manifest.report.image_count == len(manifest.images) == 12


def grey16() -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 65535, (16, 24), dtype=np.uint16))


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


GOOD_FILES = {
    "cmyk.jpg": lambda: encoded(picture(900, "CMYK"), "JPEG"),
    "grey.png": lambda: encoded(picture(901, "L")),
    "grey16.png": lambda: encoded(grey16()),
    "rgba.png": lambda: encoded(picture(902, "RGBA")),
    "palette.gif": lambda: encoded(picture(903, "P"), "GIF"),
    "moving.gif": lambda: encoded(picture(904), "GIF", save_all=True, append_images=[picture(905), picture(906)]),
    "web.webp": lambda: encoded(picture(907), "WEBP"),
    "scan.TIFF": lambda: encoded(picture(908), "TIFF"),
    "old.bmp": lambda: encoded(picture(909), "BMP"),
    "тест 图.JPG": lambda: encoded(picture(910), "JPEG"),
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_unusual_images_are_used(folder: Folder, name: str) -> None:
    folder.fill("cat", "dog")
    folder.add(f"dog/{name}", GOOD_FILES[name]())
    manifest = folder.preflight()
    (record,) = (image for image in manifest.images if image.path == f"dog/{name}")
    assert (record.label, record.width, record.height) == ("dog", 24, 16)
    assert not manifest.report.quarantined


def test_a_rotated_photo_has_the_size_that_people_see(folder: Folder) -> None:
    folder.fill("cat", "dog")
    folder.add("dog/rotated.jpg", encoded(picture(950), "JPEG", exif=exif(6)))
    (record,) = (image for image in folder.preflight().images if image.path.endswith("rotated.jpg"))
    assert (record.width, record.height) == (16, 24)


def test_an_image_of_ten_thousand_pixels_a_side_is_used(folder: Folder) -> None:
    folder.fill("cat", "dog")
    folder.add("dog/large.png", encoded(Image.new("1", (10_000, 10_000))))
    (record,) = (image for image in folder.preflight().images if image.path == "dog/large.png")
    assert (record.width, record.height) == (10_000, 10_000)


def test_a_file_that_goes_away_is_set_aside(folder: Folder) -> None:
    folder.fill("cat", "dog")
    source = open_store(folder.root.as_uri())
    listing = read_listing(source.list(""))
    (folder.root / "cat/3.png").unlink()
    spec = TrainingJobSpec(dataset_id=DATASET)
    manifest = preflight.judge(DATASET, listing, inspect_files(source, listing.files), spec)
    assert quarantined(manifest) == {"cat/3.png": QuarantineReason.UNREADABLE}


# --- the same image several times ---


def test_two_labels_for_the_same_image_set_both_copies_aside(folder: Folder) -> None:
    folder.fill("cat", "dog")
    folder.add("cat/same.png", encoded(picture(777)))
    folder.add("dog/same.png", encoded(picture(777)))
    manifest = folder.preflight()
    assert quarantined(manifest) == dict.fromkeys(["cat/same.png", "dog/same.png"], QuarantineReason.CONFLICTING_LABELS)
    assert "'dog/same.png'" in manifest.report.quarantined[0].message


def test_two_labels_across_splits_are_a_conflict_too(folder: Folder) -> None:
    folder.fill("train/cat", "train/dog", "test/cat", "test/dog")
    folder.add("train/cat/same.png", encoded(picture(777)))
    folder.add("test/dog/same.png", encoded(picture(777)))
    assert set(quarantined(folder.preflight())) == {"train/cat/same.png", "test/dog/same.png"}


def test_a_test_image_among_the_training_images_is_taken_out_of_training(folder: Folder) -> None:
    folder.fill("train/cat", "train/dog", "test/cat", "test/dog")
    folder.add("train/cat/leak.png", (folder.root / "test/cat/0.png").read_bytes())
    manifest = folder.preflight()
    assert quarantined(manifest) == {"train/cat/leak.png": QuarantineReason.LEAKED_FROM_TEST}
    assert "test/cat/0.png" in [image.path for image in manifest.images]


def test_exact_duplicates_count_once(folder: Folder) -> None:
    folder.fill("cat", "dog")
    for copy in ("x", "y"):
        folder.add(f"cat/{copy}.png", (folder.root / "cat/0.png").read_bytes())
    manifest = folder.preflight()
    assert manifest.report.duplicate_count == 2
    assert "cat/0.png" in [image.path for image in manifest.images]
    assert len(manifest.images) == 12
    assert not manifest.report.quarantined


# --- what is refused ---


def test_an_empty_dataset_is_refused(folder: Folder) -> None:
    with pytest.raises(DatasetEmpty, match="has no files"):
        folder.preflight()


def test_images_without_class_folders_are_refused(folder: Folder) -> None:
    folder.add("1.png", encoded(picture(1)))
    with pytest.raises(DatasetEmpty, match=r"one folder per class"):
        folder.preflight()


def test_one_class_is_refused(folder: Folder) -> None:
    folder.fill("cat")
    with pytest.raises(DatasetTooFewClasses, match="'cat'"):
        folder.preflight()


def test_a_class_with_one_image_is_refused(folder: Folder) -> None:
    folder.fill("cat", "dog")
    folder.add("rare/1.png", encoded(picture(5000)))
    with pytest.raises(ClassTooSmall, match="'rare' has 1 usable image"):
        folder.preflight()


def test_a_class_whose_images_are_all_bad_is_refused_with_the_reason(folder: Folder) -> None:
    folder.fill("cat", "dog")
    folder.add("bad/1.jpg", b"")
    with pytest.raises(ClassTooSmall, match=r"'bad'.*bad/1\.jpg: the file is empty"):
        folder.preflight()


def test_a_class_to_test_on_that_nobody_trains_on_is_refused(folder: Folder) -> None:
    folder.fill("train/cat", "train/dog", "test/cat", "test/wolf")
    with pytest.raises(ClassTooSmall, match="'wolf' has files in the test split"):
        folder.preflight()


def test_too_many_bad_files_are_refused(folder: Folder) -> None:
    folder.fill("cat", "dog")
    for index in range(4):
        folder.add(f"cat/bad{index}.jpg", b"no image")
    with pytest.raises(TooManyQuarantined, match=r"4 of 16 files .* cat/bad0\.jpg"):
        folder.preflight(max_quarantined_fraction=0.2)
    assert len(folder.preflight(max_quarantined_fraction=0.25).images) == 12


# --- splits ---


def test_validation_images_are_held_out_of_the_training_images(folder: Folder) -> None:
    folder.fill("cat", "dog", count=10)
    manifest = folder.preflight(validation_fraction=0.3)
    assert manifest.validation_held_out
    assert [(count.train, count.validation, count.test) for count in manifest.report.classes] == [(7, 3, 0)] * 2


def test_a_validation_split_of_ones_own_is_left_alone(folder: Folder) -> None:
    folder.fill("train/cat", "train/dog", "val/cat", "val/dog")
    manifest = folder.preflight()
    assert not manifest.validation_held_out
    assert all((image.split is Split.VALIDATION) == image.path.startswith("val/") for image in manifest.images)


def test_a_class_missing_from_validation_is_a_warning(folder: Folder) -> None:
    folder.fill("train/cat", "train/dog", "val/cat")
    assert folder.preflight().report.warnings == ["the validation split has no image of 'dog'"]


def test_labels_are_ordered_by_name(folder: Folder) -> None:
    folder.fill("2", "10", "zebra", "Ärger")
    assert folder.preflight().labels == ["10", "2", "zebra", "Ärger"]


def test_the_manifest_does_not_depend_on_the_order_of_reading(folder: Folder) -> None:
    folder.fill("cat", "dog")
    folder.add("dog/bad.jpg", b"")
    source = open_store(folder.root.as_uri())
    listing = read_listing(source.list(""))
    spec = TrainingJobSpec(dataset_id=DATASET)
    inspected = inspect_files(source, listing.files)
    assert preflight.judge(DATASET, listing, inspected, spec) == preflight.judge(
        DATASET, listing, reversed(inspected), spec
    )


def test_the_fingerprint_names_what_decides_the_manifest(folder: Folder) -> None:
    folder.fill("cat", "dog")

    def fingerprint(**spec: object) -> str:
        return folder.preflight(**spec).fingerprint

    assert fingerprint() == fingerprint(epochs=3)
    assert len({fingerprint(), fingerprint(seed=1), fingerprint(validation_fraction=0.3)}) == 3
