"""Batch predictions: labels for every image of a source, and what their results look like."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from services.contracts.base import Contract, ObjectRef, ResourceName, Sha256, StoredContract, stored
from services.contracts.datasets import PrefixSource
from services.contracts.ids import DatasetId, TrunkId
from services.contracts.predictions import MAX_TOP_K, Prediction
from services.contracts.resources import Resources

PREDICTIONS_JSONL = "predictions.jsonl"
PREDICTIONS_CSV = "predictions.csv"
QUARANTINE_JSONL = "quarantine.jsonl"
QUARANTINE_CSV = "quarantine.csv"


class DatasetFiles(Contract):
    """All files of a registered dataset, whatever its folders say about them."""

    type: Literal["dataset"] = "dataset"
    dataset_id: DatasetId = Field(examples=["ds_0199a8c0b1f23a4b5c6d7e8f"])


ImageSource = Annotated[PrefixSource | DatasetFiles, Field(discriminator="type")]


class BatchPredictionSpec(Contract):
    """Which images to label, and with what."""

    model_name: ResourceName = Field(examples=["flowers"])
    version: int | None = Field(
        default=None, ge=1, lt=2**31, description="Null takes the newest, or the alias's.", examples=[3]
    )
    alias: ResourceName | None = Field(default=None, description="Instead of `version`.")
    source: ImageSource = Field(
        examples=[
            {"type": "prefix", "uri": "s3://my-bucket/incoming/"},
            {"type": "dataset", "dataset_id": "ds_0199a8c0b1f23a4b5c6d7e8f"},
        ],
        description="`prefix`: every file below it, at any depth. `dataset`: every file of a registered dataset.",
    )
    top_k: int = Field(default=5, ge=1, le=MAX_TOP_K, description="Labels per image, most probable first.")
    resources: Resources = Field(
        default=Resources(),
        description="Where the work may run. It uses every core of these nodes: `min_workers` and `max_workers` are "
        "training's.",
    )
    max_attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Attempts that may fail for an unknown reason. Lost machines and stores do not count.",
    )

    @model_validator(mode="after")
    def _names_one_version(self) -> Self:
        if self.version is not None and self.alias is not None:
            raise ValueError("give `version` or `alias`, not both")
        return self


StoredBatchSpec = Annotated[BatchPredictionSpec, stored(TypeAdapter(BatchPredictionSpec))]
"""The spec as a stored record has it: fields of a newer release are ignored."""


class LabelledImage(StoredContract):
    """One line of `predictions.jsonl`, in order of paths."""

    path: str = Field(description="Relative to the source.")
    sha256: Sha256 = Field(description="Of the file's bytes as they were labelled.")
    predictions: list[Prediction] = Field(description="Most probable first.")


class LabelCount(StoredContract):
    label: str
    count: int = Field(description="Images whose most probable label it is.")


class BatchResult(StoredContract):
    """What a batch prediction made. Every file that was found is in one of the two lists, once."""

    model_name: str
    version: int
    trunk_id: TrunkId
    weights_sha256: Sha256 = Field(description="The version's.")
    source_uri: str
    file_count: int = Field(description="Files found.")
    image_count: int = Field(description="Of them, those that were labelled.")
    quarantined_count: int = Field(description="Of them, those that could not be used.")
    ignored_count: int = Field(description="Hidden files and folders, not looked at.")
    labels: list[LabelCount] = Field(description="Labels that some image has, in the model's order.")
    predictions_jsonl: ObjectRef = Field(description="A `LabelledImage` per line, in order of paths.")
    predictions_csv: ObjectRef = Field(description="The same: path, then label and probability of each prediction.")
    quarantine_jsonl: ObjectRef = Field(description="A `QuarantinedFile` per line, in order of paths.")
    quarantine_csv: ObjectRef = Field(description="The same: path, reason, message.")
    finished_at: datetime

    @property
    def files(self) -> list[ObjectRef]:
        """All files of the results."""
        return [self.predictions_jsonl, self.predictions_csv, self.quarantine_jsonl, self.quarantine_csv]

    @property
    def sentence(self) -> str:
        """What there is, for people."""
        aside = f"; {self.quarantined_count} file(s) were set aside" if self.quarantined_count else ""
        return f"Labelled {self.image_count} image(s) with version {self.version} of model {self.model_name!r}{aside}."
