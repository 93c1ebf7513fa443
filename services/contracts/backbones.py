"""The backbones users can choose, as facts that need no TensorFlow: names, sizes, feature widths.

`ray_cluster.vision.backbones` builds them; a contract test holds this table against what it builds.
"""

from dataclasses import dataclass
from enum import StrEnum


class BackboneName(StrEnum):
    """Pretrained convolutional networks. All but `rekindle_tiny` come from `keras.applications`."""

    REKINDLE_TINY = "rekindle_tiny"
    MOBILENET = "mobilenet"
    MOBILENET_V2 = "mobilenet_v2"
    EFFICIENTNET_V2_B0 = "efficientnet_v2_b0"
    EFFICIENTNET_V2_B1 = "efficientnet_v2_b1"
    EFFICIENTNET_V2_B2 = "efficientnet_v2_b2"
    EFFICIENTNET_V2_B3 = "efficientnet_v2_b3"
    RESNET50 = "resnet50"
    INCEPTION_V3 = "inception_v3"
    CONVNEXT_TINY = "convnext_tiny"


@dataclass(frozen=True, slots=True)
class BackboneFacts:
    """What a gateway needs to know to accept or refuse a spec."""

    default_image_size: int
    """Side of the square input in pixels at which the pretrained weights were made."""
    min_image_size: int
    """Smallest side in pixels that the architecture accepts."""
    feature_dim: int
    """Length of the pooled feature vector."""
    default_weights: str
    """`imagenet` (downloaded by Keras) or `bundled` (comes with Rekindle)."""
    block_count: int
    """Blocks that `train: top_blocks:N` counts, from the top; N must be smaller."""
    multiply_adds: int
    """Multiplications with additions in convolutions and products of matrices, for one image at the default size."""


BACKBONES: dict[BackboneName, BackboneFacts] = {
    BackboneName.REKINDLE_TINY: BackboneFacts(64, 32, 128, "bundled", 6, 25_583_616),
    BackboneName.MOBILENET: BackboneFacts(224, 32, 1024, "imagenet", 13, 567_716_352),
    BackboneName.MOBILENET_V2: BackboneFacts(224, 32, 1280, "imagenet", 17, 299_494_272),
    BackboneName.EFFICIENTNET_V2_B0: BackboneFacts(224, 32, 1280, "imagenet", 21, 716_806_176),
    BackboneName.EFFICIENTNET_V2_B1: BackboneFacts(240, 32, 1280, "imagenet", 27, 1_195_539_360),
    BackboneName.EFFICIENTNET_V2_B2: BackboneFacts(260, 32, 1408, "imagenet", 28, 1_696_134_832),
    BackboneName.EFFICIENTNET_V2_B3: BackboneFacts(300, 32, 1536, "imagenet", 32, 3_009_922_816),
    BackboneName.RESNET50: BackboneFacts(224, 32, 2048, "imagenet", 16, 3_855_925_248),
    BackboneName.INCEPTION_V3: BackboneFacts(299, 75, 2048, "imagenet", 11, 5_711_168_096),
    BackboneName.CONVNEXT_TINY: BackboneFacts(224, 32, 768, "imagenet", 18, 4_454_763_264),
}

MAX_IMAGE_SIZE = 1024
"""Largest side in pixels that a spec may ask for."""


def multiply_adds(backbone: BackboneName, image_size: int) -> int:
    """What the frozen network costs for one image with sides of so many pixels: in proportion to the image's area.

    Within 6 % of the layers' own sum, except for Inception V3: it does not pad its edges, so a small image costs less,
    at 75 pixels 0.56 times as much.
    """
    facts = BACKBONES[backbone]
    return round(facts.multiply_adds * (image_size / facts.default_image_size) ** 2)
