"""What came of `backbone: auto`: how each candidate did, and which one was taken."""

from pydantic import Field

from services.contracts.backbones import BackboneName
from services.contracts.base import StoredContract
from services.contracts.jobs.weights import StoredWeights


class ProbedBackbone(StoredContract):
    """A candidate, and what a head on its features was worth on images that this head was not trained on."""

    backbone: BackboneName
    weights: StoredWeights = Field(description="A file's with the sha256 that it had.")
    image_size: int = Field(description="Side in pixels.")
    feature_dim: int = Field(description="Features of an image.")
    multiply_adds: int = Field(
        description="What it costs: multiplications with additions in the frozen network for one image, computed from "
        "its layers and the image size, not measured."
    )
    accuracy: float = Field(description="0 to 1, over all images probed, each held out once.")
    standard_error: float = Field(description="Of the accuracy, 0 to 1.")
    loss: float = Field(description="Mean cross-entropy in nats on the same images, before calibration.")
    accuracy_difference: float = Field(description="To the most accurate candidate; 0 or less.")
    loss_difference: float = Field(description="Nats, to the most accurate candidate; less than 0 is better.")
    chosen: bool


class LeftOutBackbone(StoredContract):
    """A candidate that could not be probed."""

    backbone: BackboneName
    weights: StoredWeights
    image_size: int
    message: str = Field(description="Why its weights could not be had.")


class BackboneChoice(StoredContract):
    """How a job with `backbone: auto` came to its backbone.

    Chosen is the cheapest candidate whose accuracy is within one standard error of the best.
    """

    candidates: list[ProbedBackbone] = Field(description="In the order of the spec; one of them was chosen.")
    left_out: list[LeftOutBackbone]
    image_count: int = Field(description="Training and validation images probed, the same for every candidate.")
    class_count: int = Field(description="Classes of these images: all, or 150 of more.")
    fold_count: int = Field(description="Parts that the images were held out in, one after the other.")
    reason: str = Field(description="Why the chosen one, for people.")

    @property
    def chosen(self) -> ProbedBackbone:
        """What the job trains on."""
        return next(each for each in self.candidates if each.chosen)
