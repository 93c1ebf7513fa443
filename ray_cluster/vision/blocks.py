"""Where backbones can be cut: in front of their blocks, which Keras' layer names tell. Imports TensorFlow.

A block is a run of layers that one tensor enters: a residual block, an inverted bottleneck, an Inception module. What
follows the last block (a last convolution, pooling) belongs to the top, whatever the cut.
"""

import math
import re

import keras

from services.contracts.backbones import BackboneName
from services.contracts.errors import InternalError

POOLED = "pooled"
"""The cut after pooling."""
INPUT = "input"
"""The cut before everything."""

_EFFICIENTNET_V2 = r"(block\d[a-z])_"
_PATTERNS: dict[BackboneName, str] = {
    BackboneName.REKINDLE_TINY: r"(stage\d_(?:in|block))(?:_|$)",
    BackboneName.MOBILENET: r"(?:conv_pad|conv_dw|conv_pw)_(\d+)",
    BackboneName.MOBILENET_V2: r"(expanded_conv|block_\d+)_",
    BackboneName.EFFICIENTNET_V2_B0: _EFFICIENTNET_V2,
    BackboneName.EFFICIENTNET_V2_B1: _EFFICIENTNET_V2,
    BackboneName.EFFICIENTNET_V2_B2: _EFFICIENTNET_V2,
    BackboneName.EFFICIENTNET_V2_B3: _EFFICIENTNET_V2,
    BackboneName.RESNET50: r"(conv\d_block\d)_",
    BackboneName.INCEPTION_V3: r"^(mixed\d+)$",
    BackboneName.CONVNEXT_TINY: r"(stage_\d_block_\d)_",
}
"""By backbone: a layer's name to the block it belongs to."""

_NAMED_BY_THEIR_END = {BackboneName.INCEPTION_V3}
"""Backbones whose blocks' last layers alone have names."""


def block_names(backbone: BackboneName, network: keras.Model) -> list[str]:
    """The blocks' names from the image to the features."""
    return list(_first_layers(backbone, network))


def cut_name(backbone: BackboneName, network: keras.Model, cut: str) -> str:
    """`pooled` and `input` as they are; for `top_blocks:N` the name of the first of these blocks."""
    if cut in (POOLED, INPUT):
        return cut
    names = block_names(backbone, network)
    count = int(cut.removeprefix("top_blocks:"))
    if not 1 <= count < len(names):
        raise InternalError(f"{backbone} has {len(names)} blocks: it cannot be cut below the last {count}")
    return names[-count]


def cut_tensor(backbone: BackboneName, network: keras.Model, block: str) -> keras.KerasTensor:
    """What enters the block of that name, which is not the first."""
    layers = _first_layers(backbone, network)
    if backbone in _NAMED_BY_THEIR_END:
        names = list(layers)
        tensor = layers[names[names.index(block) - 1]].output
    else:
        tensor = layers[block].input
    if not isinstance(tensor, keras.KerasTensor):
        raise InternalError(f"more than one tensor enters {block} of {backbone}")
    return tensor


def flat_size(tensor: keras.KerasTensor) -> int:
    """Elements of one example."""
    return math.prod(tensor.shape[1:])


def _first_layers(backbone: BackboneName, network: keras.Model) -> dict[str, keras.layers.Layer]:
    found: dict[str, keras.layers.Layer] = {}
    for layer in network.layers:
        match = re.search(_PATTERNS[backbone], layer.name)
        if match is not None:
            found.setdefault(match[1], layer)
    return found
