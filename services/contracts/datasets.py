"""Datasets: where labelled images come from, and what preflight found in them."""

import hashlib
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Contract, ResourceName, Sha256, StoredContract
from services.contracts.ids import DatasetId


class PrefixSource(Contract):
    """Images that stay where they are: an S3 prefix (`s3://bucket/prefix/`) or, where enabled, a local folder."""

    type: Literal["prefix"] = "prefix"
    uri: str = Field(
        min_length=1,
        max_length=1024,
        examples=["s3://my-bucket/flowers/"],
        description="`s3://bucket/prefix/`, or `file:///folder/` where the operator allows local paths.",
    )


class UploadSource(Contract):
    """Images that are uploaded to Rekindle."""

    type: Literal["upload"] = "upload"


DatasetSource = Annotated[PrefixSource | UploadSource, Field(discriminator="type")]


class NewDataset(Contract):
    """A dataset to register."""

    name: ResourceName = Field(examples=["flowers"])
    source: DatasetSource = Field(
        examples=[{"type": "prefix", "uri": "s3://my-bucket/flowers/"}, {"type": "upload"}],
        description="`prefix`: images that stay where they are. `upload`: images that you send next.",
    )


class UploadUrlsRequest(Contract):
    """Files that are about to be uploaded."""

    paths: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=512)]],
        Field(min_length=1, max_length=1000, examples=[["daisy/1.jpg", "rose/1.jpg"]]),
    ]


class UploadUrl(Contract):
    """Where to send one file."""

    path: str
    url: str = Field(description="Takes the file's bytes as the raw body.")
    method: str = Field(description="Always PUT.")
    needs_key: bool = Field(description="Whether the request needs your API key; a presigned URL must not get it.")


class UploadUrls(Contract):
    """Where to send each file, in the order of the request."""

    urls: list[UploadUrl]


class DatasetState(StrEnum):
    AWAITING_UPLOAD = "awaiting_upload"
    READY = "ready"


class Split(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


SPLIT_FOLDERS: dict[str, Split] = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "val": Split.VALIDATION,
    "valid": Split.VALIDATION,
    "validation": Split.VALIDATION,
    "test": Split.TEST,
}
"""Top-level folder names that mean a split and not a class, if every top-level folder is one of them and one is
`train` or `training`."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"})
"""File names that are read as images, compared in lower case. Other files are quarantined as `not_an_image`."""


class DatasetLayout(Contract):
    """What a listing shows before any image is read."""

    splits: list[Split] = Field(description="The splits that the folders name; only `train` for a folder per class.")
    classes: list[str] = Field(description="Class names (folder names), sorted by name.")
    image_count: int | None = Field(description="Files that look like images; null where there are too many to count.")


class Dataset(Contract):
    """A registered dataset."""

    id: DatasetId
    name: ResourceName
    source: DatasetSource
    state: DatasetState
    layout: DatasetLayout | None = Field(description="Null until the upload is complete.")
    created_at: datetime


class QuarantineReason(StrEnum):
    """Why a file was set aside. The job goes on without it."""

    ZERO_BYTES = "zero_bytes"
    NOT_AN_IMAGE = "not_an_image"
    CORRUPT = "corrupt"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_LARGE = "too_large"
    CONFLICTING_LABELS = "conflicting_labels"
    LEAKED_FROM_TEST = "leaked_from_test"
    UNREADABLE = "unreadable"


class QuarantinedFile(StoredContract):
    path: str = Field(description="Relative to the dataset's root.")
    reason: QuarantineReason
    message: str


class ImageRecord(StoredContract):
    """One usable image."""

    path: str = Field(description="Relative to the dataset's root.")
    sha256: Sha256
    size_bytes: int
    width: int = Field(description="Pixels, after EXIF orientation.")
    height: int = Field(description="Pixels, after EXIF orientation.")
    label: str
    split: Split


class ClassCounts(StoredContract):
    label: str
    train: int
    validation: int
    test: int


class PreflightReport(StoredContract):
    """What preflight tells the user."""

    image_count: int
    classes: list[ClassCounts]
    quarantined: list[QuarantinedFile]
    duplicate_count: int = Field(description="Images beyond the first with the same bytes and label in a split.")
    warnings: list[str] = Field(description="Sentences, e.g. a class without validation images.")
    ignored_count: int = Field(description="Hidden files and folders, not looked at.")


class DatasetManifest(StoredContract):
    """Preflight's result: the frozen list of images that a job trains on, ordered by path."""

    dataset_id: DatasetId
    fingerprint: str = Field(description="SHA-256 over the listing and the split's parameters; names the manifest.")
    labels: list[str] = Field(description="Class order, by name. Index k of every probability vector is labels[k].")
    images: list[ImageRecord]
    validation_held_out: bool = Field(
        default=False, description="The dataset has no validation split; its images were taken from the training ones."
    )
    report: PreflightReport

    def content_sha256(self) -> str:
        """Hash of what training depends on: each image's sha256, label and split, in order of path."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(f"{image.sha256}\0{image.label}\0{image.split}\n".encode())
        return digest.hexdigest()
