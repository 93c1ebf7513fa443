"""Exports: a version as one archive for other programs, and what is known of it while it is built."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from services.contracts.backbones import BackboneName
from services.contracts.base import Contract, ObjectRef, Sha256, StoredContract
from services.contracts.ids import JobId
from services.contracts.jobs import Failure

TOLERANCE = 1e-4
"""Largest difference between a probability that an export gives and the one that is served. An archive is checked by
it before anybody sees it."""


class ExportFormat(StrEnum):
    """Of the model in the archive."""

    KERAS = "keras"
    SAVEDMODEL = "savedmodel"
    TFLITE = "tflite"
    ONNX = "onnx"


class ExportManifest(StoredContract):
    """An archive in the bucket; the export exists if and only if this object and the archive do."""

    model_name: str
    version: int
    format: ExportFormat
    archive: ObjectRef
    created_at: datetime


class ExportFailure(StoredContract):
    """A build that left no archive."""

    build: int = Field(description="Counted from 1.")
    failure: Failure
    finished_at: datetime


class ExportStatus(Contract):
    """An archive that is being built."""

    model_name: str
    version: int
    format: ExportFormat
    state: Literal["pending", "running"] = Field(description="`pending`: it waits for the cluster to start it.")
    build: int = Field(description="Counted from 1: builds that died or failed come before.")
    submission_id: str = Field(description="The Ray job.")
    retry_after_s: int = Field(description="When to ask again; the header `Retry-After` says the same.")


class ExportedPixels(Contract):
    """How an image file becomes the model's input."""

    width: int
    height: int
    channels: str = "RGB"
    dtype: str = "uint8"
    resize: str = (
        "stretched to the square with Pillow's BILINEAR filter, which is antialiased, or within a grey level of that"
    )
    orientation: str = "EXIF orientation applied"
    transparency: str = "laid on white"
    scaling: str = "none: values 0 to 255, what the network needs beyond that is part of the model"
    version: int = Field(description="Changes when any of this does.")


class ExportedTensor(Contract):
    """The model's input or output."""

    name: str
    dtype: str
    shape: list[int | None] = Field(description="Null: any.")


class ExportedModel(Contract):
    """`model.json` in the archive."""

    model_name: str
    version: int
    format: ExportFormat
    file: str = Field(description="The model in the archive: a file or a folder.")
    labels: list[str] = Field(description="In the order of the output's classes; `labels.txt` has one on each line.")
    input: ExportedTensor
    output: ExportedTensor
    pixels: ExportedPixels
    tolerance: float = Field(description="Largest difference from the probabilities that Rekindle serves.")
    backbone: BackboneName
    weights_sha256: Sha256 = Field(description="Over the trained weights.")
    job_id: JobId
    created_at: datetime = Field(description="When the version was published.")
