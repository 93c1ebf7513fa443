"""The backbones that a job with `backbone: auto` chooses from."""

from typing import Literal, Self

from pydantic import Field, model_validator

from services.contracts.backbones import BACKBONES, MAX_IMAGE_SIZE, BackboneName
from services.contracts.base import Contract
from services.contracts.jobs.weights import Weights

AUTO: Literal["auto"] = "auto"
"""In the place of a backbone's name: probe several, and choose one."""

DEFAULT_CANDIDATES = (
    BackboneName.MOBILENET_V2,
    BackboneName.EFFICIENTNET_V2_B0,
    BackboneName.EFFICIENTNET_V2_B3,
    BackboneName.RESNET50,
    BackboneName.CONVNEXT_TINY,
)
"""What `auto` probes where the spec names nothing else, by ascending cost.

The cheapest, a cheap one that is much better on ImageNet, and the two best on ImageNet, which differ in family.
ResNet50 is far behind these on ImageNet, but its weights were trained without label smoothing and dropout, which make
features worse for other tasks (S. Kornblith, J. Shlens and Q. Le, Do Better ImageNet Models Transfer Better?, 2019,
section 4.2). The others lie between these in cost and in accuracy.
"""


class BackboneCandidate(Contract):
    """A backbone, and what it is to be tried with."""

    backbone: BackboneName
    weights: Weights | None = Field(
        default=None, description="`imagenet`, `bundled`, or a file; null takes the backbone's own default."
    )
    image_size: int | None = Field(
        default=None, le=MAX_IMAGE_SIZE, description="Side in pixels; null takes the backbone's own."
    )

    @model_validator(mode="after")
    def _fits_the_backbone(self) -> Self:
        why = refusal(self.backbone, self.weights, self.image_size)
        if why is not None:
            raise ValueError(why)
        return self

    def resolved_weights(self) -> Weights:
        """`weights`, or the backbone's default where it is null."""
        if self.weights is not None:
            return self.weights
        return "bundled" if BACKBONES[self.backbone].default_weights == "bundled" else "imagenet"

    def resolved_image_size(self) -> int:
        """`image_size`, or the backbone's default where it is null. Pixels."""
        return self.image_size or BACKBONES[self.backbone].default_image_size


def refusal(backbone: BackboneName, weights: Weights | None, image_size: int | None) -> str | None:
    """Why the backbone cannot have these weights or this image size; None where it can."""
    facts = BACKBONES[backbone]
    if image_size is not None and image_size < facts.min_image_size:
        return f"image_size {image_size} is too small for {backbone}: use {facts.min_image_size} or more"
    wanted = weights or facts.default_weights
    if isinstance(wanted, str) and wanted != facts.default_weights:
        return f"{backbone} has no {wanted!r} weights: use {facts.default_weights!r}, or a file's URI"
    return None


def auto_refusal(
    candidates: tuple[BackboneCandidate, ...] | None, weights: Weights | None, image_size: int | None
) -> str | None:
    """Why `auto` cannot choose with these fields of a spec; None where it can."""
    if candidates is None:
        if weights not in (None, "imagenet"):
            return (
                "backbone 'auto' does not know which backbones these weights are for: name `candidates`, each with its "
                "`backbone` and `weights`, or take 'imagenet'"
            )
        return next((why for name in DEFAULT_CANDIDATES if (why := refusal(name, None, image_size))), None)
    if weights is not None or image_size is not None:
        return "with `candidates`, `weights` and `image_size` are each candidate's own: put them there"
    distinct = {(each.backbone, each.resolved_weights(), each.resolved_image_size()) for each in candidates}
    if len(distinct) < len(candidates):
        return "two candidates are the same: name each backbone, with its weights and image size, once"
    return None
