"""What a user asks for: the spec of a training job."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, TypeAdapter, model_validator

from services.contracts.backbones import BACKBONES, MAX_IMAGE_SIZE, BackboneName
from services.contracts.base import Contract, ResourceName, stored
from services.contracts.ids import DatasetId
from services.contracts.jobs.candidates import (
    AUTO,
    DEFAULT_CANDIDATES,
    BackboneCandidate,
    auto_refusal,
    refusal,
)
from services.contracts.jobs.choice import ProbedBackbone
from services.contracts.jobs.weights import Weights
from services.contracts.resources import Resources

DEFAULT_WEIGHT_DECAY = 0.05

TrainedPart = Annotated[str, StringConstraints(pattern=r"^(head|top_blocks:[1-9][0-9]?|all)$")]


class EarlyStopping(Contract):
    """Stop when validation loss has not improved for `patience` epochs, and keep the best epoch's weights."""

    patience: int = Field(default=10, ge=1, le=1000, description="Epochs.")


class FineTuning(Contract):
    """How the network above the cut is trained, after the head. Unused where `train` is `head`."""

    epochs: int = Field(default=10, ge=1, le=10_000, description="At most so many passes over the training images.")
    batch_size: int = Field(default=32, ge=1, le=4096, description="Images per step, over all workers together.")
    learning_rate: float = Field(
        default=1e-3, gt=0, le=1, description="Adam's, of the head, after the warm-up; it then falls to 0 by a cosine."
    )
    block_rate: float = Field(
        default=0.1, ge=0, le=1, description="The pretrained blocks' learning rate, as a share of the head's."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of the pooled features dropped in training.")
    patience: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Stops when validation loss has not improved for so many epochs; the best epoch's weights count.",
    )


class ParentVersion(Contract):
    """A published version that a job goes on from."""

    model_name: ResourceName = Field(examples=["flowers"])
    version: int | None = Field(
        default=None, ge=1, lt=2**31, description="Null takes the newest; the accepted job names it.", examples=[3]
    )


class TrainingJobSpec(Contract):
    """What to train. Every field but the dataset has a good default."""

    dataset_id: DatasetId = Field(examples=["ds_0199a8c0b1f23a4b5c6d7e8f"])
    model_name: ResourceName | None = Field(
        default=None,
        description="The model that gets a new version; null takes the parent's, or else the dataset's name.",
        examples=["flowers"],
    )
    parent: ParentVersion | None = Field(
        default=None,
        description="Retrains this version on the dataset, which may have more images and other classes: training "
        "starts from the parent's weights of the classes that both have, and the report compares the two on the same "
        "images. The parent's backbone, weights and image size are taken where the spec names none.",
    )
    rename_classes: dict[str, str] = Field(
        default_factory=dict,
        max_length=10_000,
        description="What classes of the parent are called in the dataset, where that is something else.",
        examples=[{"tulip": "red tulip"}],
    )
    backbone: BackboneName | Literal["auto"] = Field(
        default=BackboneName.MOBILENET_V2,
        description="`auto` probes several on some of the images and takes the cheapest one within one standard error "
        "of the most accurate; the job's `backbone_choice` has what each gave.",
    )
    candidates: Annotated[tuple[BackboneCandidate, ...], Field(min_length=2, max_length=16)] | None = Field(
        default=None,
        description="What `auto` chooses from; null takes five networks with ImageNet weights. Only with `auto`.",
        examples=[[{"backbone": "mobilenet_v2"}, {"backbone": "resnet50", "image_size": 160}]],
    )
    weights: Weights | None = Field(
        default=None,
        description="`imagenet`, `bundled`, or a file; null takes the backbone's own default. Of `auto` with "
        "`candidates` each of these has its own.",
    )
    image_size: int | None = Field(
        default=None,
        le=MAX_IMAGE_SIZE,
        description="Side in pixels of the square that images are resized to; null takes the backbone's own. Of `auto` "
        "with `candidates` each of these has its own.",
    )
    train: TrainedPart = Field(
        default="head",
        description=(
            "Which part is trained: `head` on the frozen backbone's features, `top_blocks:N` for the backbone's last N "
            "blocks as well, or `all` of the network."
        ),
        examples=["top_blocks:2"],
    )
    fine_tuning: FineTuning = FineTuning()
    epochs: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="At most so many passes over the training images; the head mostly converges in 30 to 60.",
    )
    weight_decay: Annotated[float, Field(ge=0, le=100)] | Literal["auto"] = Field(
        default=DEFAULT_WEIGHT_DECAY,
        description="L2 penalty on the head's weights, relative to the mean cross-entropy. `auto` tries many and takes "
        "the one of the lowest loss on the validation images; the version's `fit` has what each gave.",
        examples=[0.05, "auto"],
    )
    augmentation: Literal["off", "light", "strong"] = Field(
        default="off",
        description="`light` also trains on each image's mirror image; `strong` on seven fixed views of it: mirrored, "
        "cut at four corners, brighter and paler. The trunk runs once for each view, ever.",
    )
    class_weighting: Literal["none", "balanced"] = Field(
        default="none", description="`balanced` weights each class by the inverse of its share of the images."
    )
    early_stopping: EarlyStopping | None = Field(
        default=None, description="Null trains until the head has converged, which the L2 penalty makes safe."
    )
    validation_fraction: float = Field(
        default=0.2,
        gt=0,
        le=0.5,
        description="Share of the training images of each class held out, where the dataset has no validation split.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31)
    checkpoint_interval_s: float = Field(default=30, ge=1, le=3600)
    resources: Resources = Resources()
    max_attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Attempts that may fail for an unknown reason. Lost machines and stores do not count.",
    )
    max_quarantined_fraction: float = Field(
        default=0.1, ge=0, le=1, description="The job fails when a larger share of the files cannot be used."
    )

    @model_validator(mode="after")
    def _fits_the_backbone(self) -> Self:
        why = self._backbone_refusal()
        if why is not None:
            raise ValueError(why)
        if self.rename_classes and self.parent is None:
            raise ValueError("rename_classes is about a parent's classes: name the `parent`, or leave it out")
        if self.parent is None or "backbone" in self.model_fields_set:  # else the parent says which it is
            why = self.train_refusal()
            if why is not None:
                raise ValueError(why)
        return self

    def _backbone_refusal(self) -> str | None:
        if self.backbone != AUTO:
            if self.candidates is not None:
                return f"`candidates` are what backbone 'auto' chooses from, and the backbone is {self.backbone}"
            return refusal(self.backbone, self.weights, self.image_size)
        if self.parent is not None:
            return "a retrained version keeps its parent's backbone: leave `backbone` out, or `parent`"
        return auto_refusal(self.candidates, self.weights, self.image_size)

    def train_refusal(self) -> str | None:
        """Why a backbone has not got the part that is to be trained; None where each of the possible ones has."""
        if not self.train.startswith("top_blocks:"):
            return None
        backbones = [each.backbone for each in self.possible_backbones()] if self.backbone == AUTO else [self.backbone]
        for backbone in backbones:
            most = BACKBONES[backbone].block_count - 1
            if int(self.train.partition(":")[2]) > most:
                return f"train {self.train!r} is more than {backbone} has: use 'top_blocks:{most}' or less, or 'all'"
        return None

    @property
    def fine_tunes(self) -> bool:
        """Whether more than the head is trained."""
        return self.train != "head"

    def possible_backbones(self) -> tuple[BackboneCandidate, ...]:
        """What the job may come to train on: one where the spec names it, several with `auto`."""
        if self.backbone != AUTO:
            return (BackboneCandidate(backbone=self.backbone, weights=self.weights, image_size=self.image_size),)
        if self.candidates is not None:
            return self.candidates
        return tuple(BackboneCandidate(backbone=name, image_size=self.image_size) for name in DEFAULT_CANDIDATES)

    def with_backbone(self, chosen: ProbedBackbone) -> Self:
        """The spec as if it had named what was chosen in the first place."""
        update = {"backbone": chosen.backbone, "weights": chosen.weights, "image_size": chosen.image_size}
        return self.model_copy(update={**update, "candidates": None})


StoredSpec = Annotated[TrainingJobSpec, stored(TypeAdapter(TrainingJobSpec))]
"""The spec as a stored record has it: fields of a newer release are ignored."""
