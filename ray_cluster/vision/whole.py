"""A version as one Keras network, from pixels to probabilities: what exports are made from. Imports TensorFlow.

Array axes: B batch, H height, W width, C channel, D feature, K class.
"""

import tempfile
from pathlib import Path

import keras
import numpy as np

from ray_cluster.vision import blocks, uppers, weight_loading
from ray_cluster.vision.backbones import build_network, build_trunk_model, build_upper_model
from ray_cluster.vision.network_tails import HEAD, Weights
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.verified import read_verified
from services.contracts import names
from services.contracts.errors import CorruptObject, WeightsUnusable
from services.contracts.models import ModelManifest, TrunkManifest
from services.runtime.objects.protocol import ObjectStore

INPUT = "image"
OUTPUT = "probabilities"
_LARGEST = float(np.finfo(np.float16).max)


def load_version(store: ObjectStore, model: ModelManifest) -> keras.Model:
    """uint8 RGB images [B, size, size, 3] to float32 probabilities [B, K], as the version is served.

    Made of Keras' own layers and operations only, so that it can be saved and loaded again without this project.

    Raises:
        CorruptObject, NotFound: what is in the bucket is not what the manifest says.
        WeightsUnusable: the trunk is an earlier release's, and the file that it was made from is gone.
    """
    trunk, size = model.trunk, model.trunk.image_size
    images = keras.Input((size, size, 3), dtype="uint8", name=INPUT)
    network, has_top = _pretrained(store, trunk)
    if trunk.is_identity:
        features = keras.ops.reshape(keras.ops.cast(images, "float32"), (-1, trunk.feature_dim))
    else:
        features = build_trunk_model(trunk.backbone, network, has_top=has_top, cut=trunk.cut)(images)
    if trunk.feature_dtype == "float16":  # as `HalfPrecisionEngine` does
        features = keras.ops.cast(keras.ops.clip(features, -_LARGEST, _LARGEST), "float16")
        features = keras.ops.cast(features, "float32")
    head, weights = _read_tail(store, model)
    if trunk.cut != blocks.POOLED:
        upper = build_upper_model(trunk.backbone, network, has_top=has_top, cut=trunk.cut)
        uppers.assign(upper, weights, names.model_manifest(model.model_name, model.version))
        features = upper(features)
    dense = keras.layers.Dense(head.class_count, activation="softmax", name=OUTPUT)
    probabilities = dense(features)
    dense.set_weights([head.kernel_DK, head.bias_K])
    return keras.Model(images, probabilities, name="rekindle")


def _pretrained(store: ObjectStore, trunk: TrunkManifest) -> tuple[keras.Model, bool]:
    """The backbone with its weights up to the cut, and whether it ends in a classifier."""
    if trunk.is_identity or trunk.network is not None:
        network = build_network(trunk.backbone, trunk.image_size, None)
        if trunk.network is not None:
            lower = build_trunk_model(trunk.backbone, network, has_top=False, cut=trunk.cut)
            uppers.assign(lower, uppers.read_weights(store, trunk.network), trunk.network.key)
        return network, False
    with tempfile.TemporaryDirectory(prefix="rekindle-weights-") as folder:
        weights = weight_loading.locate(trunk.backbone, trunk.weights, Path(folder))
        if weights.sha256 != trunk.weights_sha256:
            raise WeightsUnusable(
                f"the weights of {trunk.backbone} are no longer those that the version was trained on: it can be "
                "exported where they are, or trained again",
                {"expected_sha256": trunk.weights_sha256, "found_sha256": weights.sha256},
            )
        pretrained = weight_loading.load_network(trunk.backbone, trunk.image_size, weights.path)
    return pretrained.network, pretrained.top is not None


def _read_tail(store: ObjectStore, model: ModelManifest) -> tuple[Tail, Weights]:
    """The head, and what a fine-tuned version has between trunk and head."""
    if model.tail_kind == "linear":
        return Tail.from_bytes(read_verified(store, model.tail)), {}
    if model.tail_weights is None:
        raise CorruptObject(f"version {model.version} of {model.model_name!r} does not say where its weights are")
    weights = uppers.read_weights(store, model.tail_weights)
    head = Tail(weights.pop(f"{HEAD}.kernel"), weights.pop(f"{HEAD}.bias"))
    return head, weights
