"""Jobs: what a user asks for, the states a job goes through, and what it reports."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, TypeAdapter, model_validator

from services.contracts.backbones import BACKBONES, MAX_IMAGE_SIZE, BackboneName
from services.contracts.base import Contract, ResourceName, Sha256, StoredContract, stored
from services.contracts.batch_predictions import BatchPredictionSpec, BatchResult, DatasetFiles, StoredBatchSpec
from services.contracts.ids import DatasetId, JobId, TrunkId
from services.contracts.resources import Resources

DEFAULT_WEIGHT_DECAY = 0.05


class WeightsUri(Contract):
    """Pretrained weights in a file: a Keras `.h5` or `.weights.h5` of the backbone, with or without its top."""

    uri: str = Field(
        min_length=1,
        max_length=1024,
        examples=["s3://my-bucket/weights/mobilenet_v2.h5"],
        description="`s3://…`, or `file://…` where the operator allows local paths.",
    )
    sha256: Sha256 | None = Field(default=None, description="Checked after reading; null trusts the URI.")


Weights = Literal["imagenet", "bundled"] | WeightsUri
StoredWeights = Annotated[Weights, stored(TypeAdapter(Weights))]
"""`Weights` as a stored record has them: fields of a newer release are ignored."""


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
    backbone: BackboneName = BackboneName.MOBILENET_V2
    weights: Weights | None = Field(
        default=None, description="`imagenet`, `bundled`, or a file; null takes the backbone's own default."
    )
    image_size: int | None = Field(
        default=None,
        le=MAX_IMAGE_SIZE,
        description="Side in pixels of the square that images are resized to; null takes the backbone's own.",
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
        facts = BACKBONES[self.backbone]
        if self.image_size is not None and self.image_size < facts.min_image_size:
            raise ValueError(
                f"image_size {self.image_size} is too small for {self.backbone}: use {facts.min_image_size} or more"
            )
        weights = self.weights or facts.default_weights
        if isinstance(weights, str) and weights != facts.default_weights:
            raise ValueError(
                f"{self.backbone} has no {weights!r} weights: use {facts.default_weights!r}, or a file's URI"
            )
        if self.rename_classes and self.parent is None:
            raise ValueError("rename_classes is about a parent's classes: name the `parent`, or leave it out")
        if self.parent is None or "backbone" in self.model_fields_set:  # else the parent says which it is
            why = self.train_refusal()
            if why is not None:
                raise ValueError(why)
        return self

    def train_refusal(self) -> str | None:
        """Why the backbone has not got the part that is to be trained; None where it has."""
        most = BACKBONES[self.backbone].block_count - 1
        if self.train.startswith("top_blocks:") and int(self.train.partition(":")[2]) > most:
            return f"train {self.train!r} is more than {self.backbone} has: use 'top_blocks:{most}' or less, or 'all'"
        return None

    @property
    def fine_tunes(self) -> bool:
        """Whether more than the head is trained."""
        return self.train != "head"

    def resolved_weights(self) -> Weights:
        """`weights`, or the backbone's default where it is null."""
        if self.weights is not None:
            return self.weights
        return "bundled" if BACKBONES[self.backbone].default_weights == "bundled" else "imagenet"

    def resolved_image_size(self) -> int:
        """`image_size`, or the backbone's default where it is null. Pixels."""
        return self.image_size or BACKBONES[self.backbone].default_image_size


StoredSpec = Annotated[TrainingJobSpec, stored(TypeAdapter(TrainingJobSpec))]
"""The spec as a stored record has it: fields of a newer release are ignored."""


class JobKind(StrEnum):
    TRAIN = "train"
    IMPORT_BASE = "import_base"
    """Publishes the pretrained classifier itself as the model `base`. Created by Rekindle, not by users."""
    PREDICT = "predict"
    """A batch prediction: labels every image of a source with a published version."""


class JobState(StrEnum):
    QUEUED = "queued"
    PREPARING = "preparing"
    TRAINING = "training"
    EVALUATING = "evaluating"
    PREDICTING = "predicting"
    """Of a batch prediction: from the first image to the last byte of the results."""
    WAITING_FOR_CAPACITY = "waiting_for_capacity"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        return self in (JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED)


class Stage(StrEnum):
    """The stages of an attempt, in order: those of training, then those of a batch prediction."""

    PREFLIGHT = "preflight"
    FEATURES = "features"
    FIT = "fit"
    FINE_TUNE = "fine_tune"
    EVALUATE = "evaluate"
    PUBLISH = "publish"
    LIST = "list"
    PREDICT = "predict"
    MERGE = "merge"

    @property
    def job_state(self) -> JobState:
        """The job's state while this stage runs."""
        match self:
            case Stage.PREFLIGHT | Stage.FEATURES | Stage.LIST:
                return JobState.PREPARING
            case Stage.FIT | Stage.FINE_TUNE:
                return JobState.TRAINING
            case Stage.EVALUATE | Stage.PUBLISH:
                return JobState.EVALUATING
            case Stage.PREDICT | Stage.MERGE:
                return JobState.PREDICTING


TRAINING_STAGES = (Stage.PREFLIGHT, Stage.FEATURES, Stage.FIT, Stage.FINE_TUNE, Stage.EVALUATE, Stage.PUBLISH)
"""Of a training job that fine-tunes; others do without `FINE_TUNE`."""


class FailureClass(StrEnum):
    """Whose fault a failed attempt is; decides whether and when there is another."""

    USER = "user"
    """Bad data or a bad spec: fails at once."""
    INFRASTRUCTURE = "infrastructure"
    """Lost machines, stores, networks: tried again without limit, with backoff."""
    CAPACITY = "capacity"
    """No machine to be had: waits."""
    UNKNOWN = "unknown"
    """Anything else: tried again up to `max_attempts`."""


PROCESS_LOST = "process_lost"
"""The code of an infrastructure failure that the job's own input may have caused: a process of it died, its machine did
not. Without progress it is repeated a few times only."""


class Failure(StoredContract):
    failure_class: FailureClass
    code: str = Field(description="Stable, for programs, e.g. `class_too_small`.")
    message: str = Field(description="What was wrong and what to do.")
    details: dict[str, JsonValue] = Field(default_factory=dict)


class Progress(StoredContract):
    """How far the running stage is."""

    stage: Stage
    done: int
    total: int | None
    unit: str = Field(description="`images`, `epochs`, …")


class EpochMetrics(StoredContract):
    """One epoch of the fit or of fine-tuning, each counted by itself.

    Losses are mean cross-entropies in nats; accuracies are shares from 0 to 1.
    """

    epoch: int = Field(description="Counted from 1.")
    epochs: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None


class Recovery(StoredContract):
    """Training went on in another process, from the newest checkpoint."""

    epoch: int = Field(
        description="The checkpoint's; the epochs after it are done again. 0 where the process before was lost before "
        "its first checkpoint."
    )
    lost_at: datetime | None = Field(
        default=None,
        description="When it was noticed that the process before was lost; null where that one left in time, or where "
        "whoever would have noticed was lost with it.",
    )
    resumed_at: datetime = Field(description="When the process began to load what it needs.")
    first_step_at: datetime = Field(description="When it had done its first epoch.")


class CapacityWait(StoredContract):
    """The work waits for a machine, or no longer does."""

    asked: str = Field(description="What one piece of the work needs, e.g. `0.9 CPU on a spot node`.")
    since: datetime
    message: str = Field(description="What Ray says about it.")
    on_demand_at: datetime | None = Field(description="From when on-demand nodes count too; null: no such time.")
    over: bool = Field(default=False, description="A machine was found.")

    @property
    def sentence(self) -> str:
        """All of it, for people."""
        if self.over:
            return "A machine was found; the work goes on."
        text = f"Waits for a machine since {self.since:%H:%M:%S} UTC: asked for {self.asked}; Ray says: {self.message}"
        if self.on_demand_at is None:
            return f"{text}."
        return f"{text}; on-demand machines count from {self.on_demand_at:%H:%M:%S} UTC on."


class Machine(StoredContract):
    """A machine that worked for a job."""

    node_id: str = Field(description="Ray's id of the node.")
    instance_type: str | None = Field(
        description="`local` for the machine of `rekindle up`; null where the machine does not know its type."
    )
    market: str | None = Field(description="`spot` or `on-demand`; null where the node has no label that says it.")


class MachineWork(StoredContract):
    """A machine's work in a stage."""

    machine: Machine
    began_at: datetime
    ended_at: datetime
    busy_s: float = Field(description="Seconds that its pieces of work took, each for itself.")


class StageTiming(StoredContract):
    stage: Stage
    attempt: int
    started_at: datetime
    finished_at: datetime | None
    trunk_id: TrunkId | None = Field(
        default=None, description="Of `features`: the network whose features it computes, as soon as that is there."
    )
    skipped: bool = Field(default=False, description="Its result was already in the bucket.")
    compute_s: float | None = Field(
        default=None,
        description="Seconds of it in which its work was being done on some machine; in the others it waited for "
        "processes and machines to start. Null until it has ended.",
    )
    machines: list[MachineWork] = Field(
        default=[], description="Who did its work, the head's drivers aside. Empty until it has ended."
    )


class PublishedModel(StoredContract):
    model_name: str
    version: int
    accuracy: float | None = Field(description="On the evaluated split, 0 to 1; null for `base`.")
    evaluated_split: str | None


class TrainingJob(Contract):
    """A job as the API shows it."""

    id: JobId
    spec: TrainingJobSpec
    model_name: str
    state: JobState
    attempt: int = Field(description="The newest attempt's number; 0 before the first.")
    submission_id: str | None = Field(description="The newest attempt's id in the Ray dashboard.")
    progress: Progress | None
    waiting: CapacityWait | None = Field(
        description="In state `waiting_for_capacity`: what the running attempt waits for. Null where Ray has not "
        "started the attempt itself, see `reason`."
    )
    metrics: EpochMetrics | None = Field(description="The newest epoch's.")
    stages: list[StageTiming]
    result: PublishedModel | None
    failure: Failure | None
    warnings: list[str]
    reason: str = Field(description="Why the job is in its state, for people.")
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None


class BatchPrediction(Contract):
    """A batch prediction as the API shows it."""

    id: JobId
    spec: BatchPredictionSpec = Field(description="As it was asked for.")
    model_name: str
    version: int = Field(description="What the spec meant when it was accepted; all images are labelled with it.")
    state: JobState
    attempt: int = Field(description="The newest attempt's number; 0 before the first.")
    submission_id: str | None = Field(description="The newest attempt's id in the Ray dashboard.")
    progress: Progress | None = Field(description="In stage `predict`: files looked at, and all there are.")
    waiting: CapacityWait | None = Field(
        description="In state `waiting_for_capacity`: what the running attempt waits for. Null where Ray has not "
        "started the attempt itself, see `reason`."
    )
    stages: list[StageTiming]
    results_uri: str = Field(description="Where in the bucket the results are, once it has succeeded.")
    result: BatchResult | None
    failure: Failure | None
    warnings: list[str]
    reason: str = Field(description="Why it is in its state, for people.")
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None


class JobEventType(StrEnum):
    STATE = "state"
    STAGE = "stage"
    PROGRESS = "progress"
    EPOCH = "epoch"
    RECOVERY = "recovery"
    WARNING = "warning"
    CAPACITY = "capacity"


class JobEvent(Contract):
    """One line of a job's history. `seq` counts from 1 without gaps and is the SSE event id."""

    seq: int
    type: JobEventType
    at: datetime
    attempt: int
    state: JobState = Field(description="The job's state after this event.")
    message: str
    data: dict[str, JsonValue] = Field(description="Depends on `type`: `StageTiming`, `Progress`, `EpochMetrics`, …")


# --- what the gateway and an attempt tell each other through the bucket ---------------------------------------------


class JobRecord(StoredContract):
    """An accepted job as the bucket keeps it; all that an attempt is started from."""

    job_id: JobId
    kind: JobKind
    model_name: str
    created_at: datetime
    spec: StoredSpec | None = Field(description="Of `train`; null for the others.")
    source_uri: str | None = Field(description="Where the files are; null for `import_base`.")
    base: "BaseModelSpec | None" = Field(default=None, description="Of `import_base`; null for the others.")
    prediction: StoredBatchSpec | None = Field(default=None, description="Of `predict`; null for the others.")
    model_version: int | None = Field(
        default=None, description="Of `predict`: the version that labels; what the spec meant when it was accepted."
    )

    @property
    def dataset_id(self) -> DatasetId | None:
        """The dataset whose files it reads; None where it reads others, or none."""
        if self.spec is not None:
            return self.spec.dataset_id
        source = None if self.prediction is None else self.prediction.source
        return source.dataset_id if isinstance(source, DatasetFiles) else None

    @property
    def resources(self) -> Resources:
        """Where the job's work may run."""
        asked = self.spec or self.prediction
        return Resources() if asked is None else asked.resources


class BaseModelSpec(StoredContract):
    """The pretrained classifier that is served as `base`."""

    backbone: BackboneName
    weights: StoredWeights
    image_size: int
    labels_uri: str | None = Field(
        description="JSON: a list of names, or Keras' class index; null for ImageNet's, as Keras downloads them."
    )


class JobCancellation(StoredContract):
    """A user asked for the job to be stopped; written before that is answered."""

    requested_at: datetime


class Fence(StoredContract):
    """Who may commit. Whoever works under a lower (attempt, term) must not."""

    attempt: int
    term: int = Field(default=0, description="Counts the trainers that the attempt gave its fit to.")


class ProgressRecord(StoredContract):
    """What an attempt reports while it runs. Written once each, in order of `seq` from 0."""

    seq: int
    at: datetime
    attempt: int
    type: JobEventType
    stage: Stage
    message: str
    data: dict[str, JsonValue]


class TrainerRecord(StoredContract):
    """A trainer took a job's training: written by itself, for the case that it is lost and tells no more."""

    stage: Stage
    machine: Machine
    began_at: datetime


class AttemptOutcome(StoredContract):
    """How an attempt ended, by its own account. An attempt that died leaves none."""

    job_id: JobId
    attempt: int
    finished_at: datetime
    published: PublishedModel | None
    failure: Failure | None
    predicted: BatchResult | None = None


class JobOutcome(StoredContract):
    """How a job ended."""

    job_id: JobId
    state: JobState
    attempt: int
    finished_at: datetime
    published: PublishedModel | None
    failure: Failure | None
    predicted: BatchResult | None = None
