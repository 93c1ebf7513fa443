"""Models: trunks that everybody shares, tails that jobs trained, and versions that bind the two."""

import hashlib
import json
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, TypeAdapter

from services.contracts.aliases import ModelAlias
from services.contracts.backbones import BackboneName
from services.contracts.base import Contract, ObjectRef, Sha256, StoredContract, stored
from services.contracts.ids import JobId, TrunkId
from services.contracts.jobs import BackboneChoice, ParentVersion, StoredSpec, StoredWeights

BASE_MODEL = "base"
"""The pretrained classifier's name. No job may publish under it."""

PREPROCESSING_VERSION = 2
"""Names how bytes become pixels (decoder, resize, scaling). Changing any of it means a new number."""


Cut = Annotated[str, StringConstraints(pattern=r"^(pooled|top_blocks:[1-9][0-9]?|input)$")]
"""Where a recipe cuts the backbone: after pooling, below its last N blocks, or before everything."""


class TrunkRecipe(StoredContract):
    """What a trunk is made from, before its weights were read."""

    backbone: BackboneName
    weights: StoredWeights
    image_size: int
    cut: Cut = "pooled"
    preprocessing_version: int = PREPROCESSING_VERSION

    def sha256(self) -> str:
        """Names the recipe. A file named without its sha256 is not a recipe that may be cached."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


class TrunkManifest(StoredContract):
    """A frozen backbone up to its cut, identified by content and independent of the engine that runs it.

    It maps a uint8 RGB image of `image_size` squared to `feature_dim` features. `pooled` cuts after global average
    pooling; a block's name cuts before that block, and the features are the activations there, flattened and rounded
    to half precision; `input` cuts before everything, and they are the pixels. Preprocessing is part of it, but for
    `input`.
    """

    trunk_id: TrunkId
    backbone: BackboneName
    weights: StoredWeights
    weights_sha256: Sha256
    image_size: int
    cut: str
    preprocessing_version: int
    feature_dim: int
    feature_shape: list[int] | None = Field(
        default=None, description="Of the features before they were flattened; null for pooled ones."
    )
    feature_dtype: Literal["float32", "float16"] = Field(
        default="float32", description="Holds every feature without loss; what the cache keeps them in."
    )
    artefacts: dict[str, ObjectRef] = Field(
        description="The forms in which engines take it: `litert`, `onnx`, `tensorflow`. Trunks that an earlier "
        "release built have fewer; none for `input`."
    )
    upper: ObjectRef | None = Field(
        default=None,
        description="Safetensors: the pretrained network from the cut to the pooled features, its variables in order.",
    )
    network: ObjectRef | None = Field(
        default=None,
        description="Safetensors: the pretrained network up to the cut, its variables in order, for exports; null for "
        "`input`, and for trunks of releases without exports.",
    )
    top: ObjectRef | None = Field(description="The pretrained classifier as a tail, where the weights have one.")

    @property
    def is_identity(self) -> bool:
        """Whether its features are the pixels: nothing runs, and nothing is worth keeping."""
        return self.cut == "input"


def compute_trunk_id(
    backbone: BackboneName, weights_sha256: str, cut: str, image_size: int, preprocessing_version: int
) -> TrunkId:
    """SHA-256 over what decides the features: not the engine, and not where the weights came from."""
    recipe = json.dumps([backbone, weights_sha256, cut, image_size, preprocessing_version])
    return TrunkId(hashlib.sha256(recipe.encode()).hexdigest())


class EngineChoice(StoredContract):
    """Which engine runs a trunk on a kind of device, or in a job."""

    engine: str = Field(description="`litert`, `onnx`, `tensorflow` or `tensorflow_gpu`.")
    device: str | None = Field(
        default=None, description="That it was chosen for, as in `Fingerprint.device`; null where any would do."
    )
    images_per_second: dict[str, float] = Field(
        default_factory=dict[str, float],
        description="By engine, of a whole node of that device; empty where nothing had to be measured.",
    )


class ClassReport(StoredContract):
    label: str
    precision: float | None = Field(description="Null when the class was never predicted.")
    recall: float | None = Field(description="Null when the split has no image of the class.")
    f1: float | None
    support: int = Field(description="Images of the class in the split.")


class Evaluation(StoredContract):
    """Quality on a split the weights were not chosen on where there is a test split, else on validation."""

    split: str
    image_count: int
    accuracy: float = Field(description="0 to 1.")
    loss: float = Field(description="Mean cross-entropy in nats.")
    calibration_error: float = Field(
        description="Expected calibration error over 15 equal-width bins, 0 to 1. Flattering where the split is "
        "`validation`: the temperature was fitted on it."
    )
    uncalibrated_error: float | None = Field(
        default=None,
        description="What the calibration error would be without the temperature; null for `base` and for fine-tuned "
        "versions.",
    )
    classes: list[ClassReport]
    confusion_matrix: list[list[int]] = Field(description="[true label][predicted label], in the order of labels.")


class WeightDecayTrial(StoredContract):
    """One penalty of a search, measured on the validation images by a head that was not trained on them."""

    weight_decay: float
    validation_loss: float = Field(description="Mean cross-entropy in nats.")
    validation_accuracy: float = Field(description="0 to 1.")
    epochs: int = Field(description="That it took, from where the penalty before ended.")


class FitReport(StoredContract):
    """How the head came to be what it is; of a fine-tuned version, the head that fine-tuning began from."""

    epochs: int
    weight_decay: float = Field(description="The L2 penalty that the head was trained with, also in fine-tuning.")
    trials: list[WeightDecayTrial] = Field(
        default_factory=list[WeightDecayTrial],
        description="Of a job with `weight_decay: auto`, in the order they were tried; empty for others.",
    )
    temperature: float = Field(
        description="What the logits are divided by, so that probabilities mean what they say; part of the weights. "
        "Fitted on the validation images with a head that was not trained on them; 1 without such images. Fine-tuning "
        "starts from the head as it is then, and fits no other."
    )


class ClassComparison(StoredContract):
    """One class of a retrained version beside its parent, on the same images."""

    label: str
    support: int = Field(description="Images of the class among those compared.")
    parent_recall: float | None = Field(description="Share that the parent gets right; null without images.")
    recall: float | None = Field(description="Share that the new version gets right; null without images.")


class ParentComparison(StoredContract):
    """A retrained version beside its parent, on the images of the evaluated split whose class both know.

    Both answer as they are served: a class that only one of them has counts as a wrong answer for these images. Images
    of classes that the parent does not know are left out, and counted.
    """

    parent: Annotated[ParentVersion, stored(TypeAdapter(ParentVersion))]
    split: str
    image_count: int = Field(description="Images compared.")
    left_out_count: int = Field(description="Images of the split whose class the parent does not know.")
    parent_accuracy: float | None = Field(description="0 to 1; null where no image could be compared.")
    accuracy: float | None = Field(description="The new version's, on the same images.")
    improved_count: int = Field(description="Images that only the new version gets right.")
    worsened_count: int = Field(description="Images that only the parent gets right.")
    trained_by_parent_count: int | None = Field(
        description="Compared images that the parent was trained on, which flatter it; null where that is not known."
    )
    unseen_parent_accuracy: float | None = Field(
        description="On the compared images that the parent was not trained on; null where there are none, or unknown."
    )
    unseen_accuracy: float | None = Field(description="The new version's, on those.")
    added_classes: list[str]
    removed_classes: list[str] = Field(description="By their names in the parent.")
    renamed_classes: dict[str, str] = Field(description="Names in the parent, and what they are now.")
    classes: list[ClassComparison] = Field(description="The classes that both have.")


class Fingerprint(StoredContract):
    """What the bits of the result depend on besides the spec and the data."""

    device: str = Field(description="`cpu:<architecture and instruction sets>` or the GPU's name.")
    trunk_engine: str = Field(description="Engine and version, e.g. `litert-2.3.0`; on a GPU its name as well.")
    threads: int = Field(description="Of the arithmetic, in each trainer.")
    numpy: str | None = Field(default=None, description="Its version.")
    tensorflow: str | None = Field(default=None, description="Its version; null for a head, which does without.")
    keras: str | None = Field(default=None, description="Its version; null for a head, which does without.")


class ModelManifest(StoredContract):
    """A published version, complete by itself: trunk, tail, labels and how it came about."""

    model_name: str
    version: int
    created_at: datetime
    job_id: JobId
    attempt: int
    trunk: TrunkManifest
    tail_kind: Literal["linear", "network"] = "linear"
    tail: ObjectRef = Field(
        description=(
            "`linear`: safetensors with `kernel` [feature_dim, labels] and `bias` [labels], float32. `network`: a "
            "LiteRT model from features [1, feature_dim] to logits [1, labels], float32."
        )
    )
    tail_weights: ObjectRef | None = Field(
        default=None, description="Safetensors: a network tail's variables in order, then `head.kernel`, `head.bias`."
    )
    tail_sha256: Sha256 = Field(description="Over the tail's tensors alone: equal for equal weights.")
    labels: list[str]
    spec: StoredSpec | None = Field(
        description="That it was trained with; of `backbone: auto`, with the backbone that was chosen. Null for `base`."
    )
    dataset_content_sha256: Sha256 | None
    train_image_count: int
    evaluation: Evaluation | None
    fit: FitReport | None = Field(default=None, description="Null for `base`.")
    parent_comparison: ParentComparison | None = Field(
        default=None, description="Of a retrained version; null for one without a parent."
    )
    backbone_choice: BackboneChoice | None = Field(
        default=None, description="Of a version whose job asked for `backbone: auto`; null for others."
    )
    predictions: ObjectRef | None = Field(description="Per-image predictions on the evaluated split, JSON lines.")
    fingerprint: Fingerprint | None


class VersionClaim(StoredContract):
    job_id: JobId


class VersionDeletion(StoredContract):
    deleted_at: datetime


# --- as the API shows them ---


class ModelVersion(Contract):
    """A published version."""

    model_name: str
    version: int
    created_at: datetime
    job_id: JobId
    backbone: BackboneName
    image_size: int
    labels: list[str]
    train_image_count: int
    evaluation: Evaluation | None
    fit: FitReport | None = Field(description="How the head was trained; null for `base`.")
    parent_comparison: ParentComparison | None = Field(
        description="Beside the version it was retrained from; null for one without a parent."
    )
    backbone_choice: BackboneChoice | None = Field(
        description="How its backbone was chosen; null where the job named it."
    )
    weights_sha256: Sha256 = Field(description="Over the trained weights; equal for equal weights.")
    trunk_id: TrunkId


class Model(Contract):
    """A named line of versions."""

    name: str
    latest_version: int
    labels: list[str] = Field(description="Of the latest version.")
    accuracy: float | None = Field(description="Of the latest version on its evaluated split.")
    aliases: list[ModelAlias]
    created_at: datetime
    updated_at: datetime
