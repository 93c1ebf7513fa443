"""Preflight's judgement: from what each file turned out to be, to the frozen list of images that a job trains on.

Pure functions; `stages` reads the files. The order of judgement: files that cannot be used, bytes with two labels,
leaks between the splits, duplicates; then whether what is left is enough; then the validation split.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ray_cluster.train.inspection import Inspected, RejectedFile, UsableImage
from ray_cluster.train.listing import Listing
from ray_cluster.train.splits import hold_out
from services.contracts.base import Sha256
from services.contracts.datasets import (
    ClassCounts,
    DatasetManifest,
    ImageRecord,
    PreflightReport,
    QuarantinedFile,
    QuarantineReason,
    Split,
)
from services.contracts.errors import ClassTooSmall, DatasetEmpty, DatasetTooFewClasses, TooManyQuarantined
from services.contracts.ids import DatasetId
from services.contracts.jobs import TrainingJobSpec
from services.contracts.models import PREPROCESSING_VERSION

PREFLIGHT_VERSION = 1
"""Changing what preflight decides for the same files means a new number."""

_PRECEDENCE = (Split.TEST, Split.VALIDATION, Split.TRAIN)
"""Of the same image in several splits, the copy in the first of these is kept."""
_SHOWN = 5


def fingerprint(listing: Listing, spec: TrainingJobSpec) -> str:
    """Names the manifest: SHA-256 over the listing and everything else that decides what is in it."""
    facts = [PREFLIGHT_VERSION, PREPROCESSING_VERSION, listing.sha256(), spec.validation_fraction, spec.seed]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def check_listing(listing: Listing) -> None:
    """Refuses, before anything is read, what no reading can save. Raises `DatasetEmpty`, `DatasetTooFewClasses`,
    `ClassTooSmall`."""
    if not listing.files:
        if listing.stray_paths:
            raise DatasetEmpty(
                f"none of the dataset's {len(listing.stray_paths)} files is in a class folder, e.g. "
                f"{listing.stray_paths[0]!r}: put the images into one folder per class"
            )
        raise DatasetEmpty("the dataset has no files: add images in one folder per class")
    train_labels = {file.label for file in listing.files if file.split is Split.TRAIN}
    if len(listing.labels()) < 2:
        raise DatasetTooFewClasses(
            f"the dataset has one class, {listing.labels()[0]!r}: a classifier needs at least two folders of images",
            {"classes": [listing.labels()[0]]},
        )
    for file in listing.files:
        if file.label not in train_labels:
            raise ClassTooSmall(
                f"class {file.label!r} has files in the {file.split} split and none to train on: add some, or remove "
                "the class",
                {"label": file.label, "usable": 0},
            )


def check_quarantine(report: PreflightReport, max_fraction: float) -> None:
    """Raises `TooManyQuarantined` when a larger share of the files could not be used."""
    bad = len(report.quarantined)
    total = report.image_count + report.duplicate_count + bad
    if bad > max_fraction * total:
        shown = "; ".join(f"{file.path}: {file.message}" for file in report.quarantined[:_SHOWN])
        raise TooManyQuarantined(
            f"{bad} of {total} files cannot be used, more than max_quarantined_fraction {max_fraction:g} allows: "
            + shown
            + ("; …" if bad > _SHOWN else ""),
            {
                "quarantined": bad,
                "files": total,
                "reasons": dict(Counter(file.reason.value for file in report.quarantined)),
            },
        )


def judge(
    dataset_id: DatasetId, listing: Listing, inspected: Iterable[Inspected], spec: TrainingJobSpec
) -> DatasetManifest:
    """The manifest of a listing that `check_listing` accepted. The order of `inspected` does not matter.

    Raises `TooManyQuarantined`, or `ClassTooSmall` naming the class.
    """
    sifted = _sift(inspected)
    report = PreflightReport(
        image_count=len(sifted.kept),
        classes=[],
        quarantined=sifted.quarantined,
        duplicate_count=sifted.duplicate_count,
        warnings=[],
        ignored_count=listing.ignored_count,
    )
    check_quarantine(report, spec.max_quarantined_fraction)
    labels = listing.labels()
    _check_classes(labels, sifted)
    held_out: set[Sha256] = set()
    holds_out = not any(image.file.split is Split.VALIDATION for image in sifted.kept)
    if holds_out:
        by_label: dict[str, list[Sha256]] = {label: [] for label in labels}
        for image in sifted.kept:
            if image.file.split is Split.TRAIN:
                by_label[image.file.label].append(image.sha256)
        held_out = hold_out(by_label, spec.validation_fraction, spec.seed)
    images = [_record(image, held_out) for image in sifted.kept]
    counts = _count(labels, images)
    report = report.model_copy(update={"classes": counts, "warnings": _warnings(listing, counts, images)})
    return DatasetManifest(
        dataset_id=dataset_id,
        fingerprint=fingerprint(listing, spec),
        labels=labels,
        images=images,
        validation_held_out=holds_out,
        report=report,
    )


@dataclass(frozen=True, slots=True)
class _Sifted:
    kept: list[UsableImage]
    """One for each distinct content, sorted by path."""
    quarantined: list[QuarantinedFile]
    """Sorted by path."""
    duplicate_count: int


def _sift(inspected: Iterable[Inspected]) -> _Sifted:
    by_sha256: dict[Sha256, list[UsableImage]] = defaultdict(list)
    quarantined: list[QuarantinedFile] = []
    for result in sorted(inspected, key=lambda result: result.file.path):
        if isinstance(result, RejectedFile):
            quarantined.append(_quarantine(result.file.path, result.reason, result.message))
        else:
            by_sha256[result.sha256].append(result)
    kept: list[UsableImage] = []
    duplicate_count = 0
    for copies in by_sha256.values():
        if len({copy.file.label for copy in copies}) > 1:
            quarantined.extend(_conflicts(copies))
            continue
        split = next(split for split in _PRECEDENCE if any(copy.file.split is split for copy in copies))
        staying = [copy for copy in copies if copy.file.split is split]
        kept.append(staying[0])
        duplicate_count += len(staying) - 1
        quarantined.extend(_leak(copy, staying[0]) for copy in copies if copy.file.split is not split)
    kept.sort(key=lambda image: image.file.path)
    quarantined.sort(key=lambda file: file.path)
    return _Sifted(kept, quarantined, duplicate_count)


def _conflicts(copies: Sequence[UsableImage]) -> Iterable[QuarantinedFile]:
    for copy in copies:
        other = next(other for other in copies if other.file.label != copy.file.label)
        message = f"the same image is labelled {other.file.label!r} as {other.file.path!r}: keep one of them"
        yield _quarantine(copy.file.path, QuarantineReason.CONFLICTING_LABELS, message)


def _leak(copy: UsableImage, staying: UsableImage) -> QuarantinedFile:
    message = f"the same image is in the {staying.file.split} split as {staying.file.path!r}, which would flatter it"
    return _quarantine(copy.file.path, QuarantineReason.LEAKED_FROM_TEST, message)


def _quarantine(path: str, reason: QuarantineReason, message: str) -> QuarantinedFile:
    return QuarantinedFile(path=path, reason=reason, message=message)


def _check_classes(labels: Sequence[str], sifted: _Sifted) -> None:
    """Each class that has a folder needs an image left to train on."""
    trainable = {image.file.label for image in sifted.kept if image.file.split is Split.TRAIN}
    for label in labels:
        if label not in trainable:
            bad = [file for file in sifted.quarantined if f"/{label}/" in f"/{file.path}"]
            shown = "; ".join(f"{file.path}: {file.message}" for file in bad[:_SHOWN])
            raise ClassTooSmall(
                f"class {label!r} has no usable image to train on: add images, or remove the folder"
                + (f" ({shown})" if shown else ""),
                {"label": label, "usable": 0},
            )


def _record(image: UsableImage, held_out: set[Sha256]) -> ImageRecord:
    held = image.file.split is Split.TRAIN and image.sha256 in held_out
    return ImageRecord(
        path=image.file.path,
        sha256=image.sha256,
        size_bytes=image.file.size_bytes,
        width=image.width,
        height=image.height,
        label=image.file.label,
        split=Split.VALIDATION if held else image.file.split,
    )


def _count(labels: Sequence[str], images: Iterable[ImageRecord]) -> list[ClassCounts]:
    counts = Counter((image.label, image.split) for image in images)
    return [
        ClassCounts(
            label=label,
            train=counts[label, Split.TRAIN],
            validation=counts[label, Split.VALIDATION],
            test=counts[label, Split.TEST],
        )
        for label in labels
    ]


def _warnings(listing: Listing, counts: Sequence[ClassCounts], images: Sequence[ImageRecord]) -> list[str]:
    warnings: list[str] = []
    if listing.stray_paths:
        warnings.append(
            f"{len(listing.stray_paths)} file(s) outside any class folder are not used, e.g. {listing.stray_paths[0]!r}"
        )
    splits = {image.split for image in images}
    for split in (Split.VALIDATION, Split.TEST):
        missing = [count.label for count in counts if getattr(count, split.value) == 0]
        if split in listing.splits() and missing:
            named = ", ".join(repr(label) for label in missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
            left = "" if split in splits else ", so there is nothing to measure on"
            warnings.append(f"the {split} split has no image of {named}{left}")
    return warnings
