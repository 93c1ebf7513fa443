"""Building trunks: a Keras backbone becomes a form for each engine, and a manifest. Imports TensorFlow; run it in a
process of its own, which then ends and gives the memory back.

Array axes: B batch, H height, W width, C channel, D feature.
"""

import tempfile
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from ray_cluster.vision import blocks, litert_export, onnx_export, tensorflow_export, uppers, weight_loading
from ray_cluster.vision.backbones import build_network, build_trunk_model, build_upper_model
from ray_cluster.vision.engines.kinds import LITERT, ONNX, TENSORFLOW
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.trunks import read_trunk, resolve_recipe
from ray_cluster.vision.verified import put_by_content, put_or_adopt
from services.contracts import names
from services.contracts.backbones import BACKBONES
from services.contracts.errors import InternalError
from services.contracts.ids import TrunkId
from services.contracts.models import ObjectRef, TrunkManifest, TrunkRecipe, compute_trunk_id
from services.runtime.objects.protocol import ObjectStore


def build_trunk(store: ObjectStore, recipe: TrunkRecipe) -> TrunkManifest:
    """The recipe's trunk: built and written, or found where another recipe gave the same one.

    May be repeated, interrupted, and run by several processes at once: objects are named by their content, the trunk's
    manifest is written after them, and the recipe's entry last. Raises `WeightsUnusable` when the weights cannot be
    had or do not fit the backbone.
    """
    recipe = resolve_recipe(recipe)
    with tempfile.TemporaryDirectory(prefix="rekindle-weights-") as folder:
        weights = weight_loading.locate(recipe.backbone, recipe.weights, Path(folder))
        cut = _cut_name(recipe)
        trunk_id = compute_trunk_id(
            recipe.backbone, weights.sha256, cut, recipe.image_size, recipe.preprocessing_version
        )
        trunk = read_trunk(store, trunk_id)
        if trunk is None:
            # Automatic names end up in the flatbuffer. Counted from the start they are the same each time, and so are
            # the bytes: a trunk that was lost can be built again under the references that models hold.
            keras.backend.clear_session()
            pretrained = weight_loading.load_network(recipe.backbone, recipe.image_size, weights.path)
            trunk = _write(store, recipe, cut, trunk_id, weights.sha256, pretrained)
    store.put(names.trunk_source(recipe.sha256()), trunk.model_dump_json().encode())
    return trunk


def convert_to_litert(trunk_model: keras.Model) -> bytes:
    """A LiteRT flatbuffer with input uint8 [1, size, size, 3] and output float32 [1, D].

    Weights stay float32. The cast from uint8 is in the graph, so callers hand over the pixels as they are.
    """
    image = tf.TensorSpec((1, *trunk_model.input_shape[1:]), tf.uint8, "image")
    return litert_export.convert(lambda image_BHWC: trunk_model(image_BHWC, training=False), image)


def _put_artefacts(store: ObjectStore, trunk_id: TrunkId, trunk_model: keras.Model) -> dict[str, ObjectRef]:
    """The trunk in the form of each engine."""
    images = tf.TensorSpec((None, *trunk_model.input_shape[1:]), tf.uint8, "image")
    frozen = tensorflow_export.freeze(lambda images_BHWC: trunk_model(images_BHWC, training=False), images)
    return {
        LITERT: _put(store, trunk_id, "trunk", "tflite", convert_to_litert(trunk_model)),
        ONNX: _put(store, trunk_id, "trunk", "onnx", onnx_export.encode(frozen, "image", "features")),
        TENSORFLOW: _put(store, trunk_id, "trunk", "pb", tensorflow_export.encode(frozen)),
    }


def _cut_name(recipe: TrunkRecipe) -> str:
    """The recipe's cut as the manifest names it."""
    if recipe.cut in (blocks.POOLED, blocks.INPUT):
        return recipe.cut
    return blocks.cut_name(recipe.backbone, build_network(recipe.backbone, recipe.image_size, None), recipe.cut)


def _write(
    store: ObjectStore,
    recipe: TrunkRecipe,
    cut: str,
    trunk_id: TrunkId,
    weights_sha256: str,
    pretrained: weight_loading.PretrainedNetwork,
) -> TrunkManifest:
    trunk = TrunkManifest(
        trunk_id=trunk_id,
        backbone=recipe.backbone,
        weights=recipe.weights,
        weights_sha256=weights_sha256,
        image_size=recipe.image_size,
        cut=cut,
        preprocessing_version=recipe.preprocessing_version,
        **(_pooled if cut == blocks.POOLED else _cut_below)(store, recipe, cut, trunk_id, pretrained),
    )
    key, manifest = names.trunk_manifest(trunk_id), trunk.model_dump_json().encode()
    return put_or_adopt(store, key, manifest, lambda: read_trunk(store, trunk_id)) or trunk


def _pooled(
    store: ObjectStore, recipe: TrunkRecipe, cut: str, trunk_id: TrunkId, pretrained: weight_loading.PretrainedNetwork
) -> dict[str, Any]:
    """What the manifest says of a trunk that ends in pooled features."""
    model = build_trunk_model(recipe.backbone, pretrained.network, has_top=pretrained.top is not None, cut=cut)
    feature_dim = int(model.output_shape[-1])
    if feature_dim != BACKBONES[recipe.backbone].feature_dim:
        raise InternalError(f"{recipe.backbone} gives {feature_dim} features, the table of backbones says otherwise")
    return {
        "feature_dim": feature_dim,
        "artefacts": _put_artefacts(store, trunk_id, model),
        "network": _put(store, trunk_id, "network", "safetensors", uppers.encode(model)),
        "top": _put_top(store, trunk_id, pretrained.top),
    }


def _cut_below(
    store: ObjectStore, recipe: TrunkRecipe, cut: str, trunk_id: TrunkId, pretrained: weight_loading.PretrainedNetwork
) -> dict[str, Any]:
    """What the manifest says of a trunk that ends in activations, or in the pixels."""
    has_top = pretrained.top is not None
    upper = build_upper_model(recipe.backbone, pretrained.network, has_top=has_top, cut=cut)
    side = recipe.image_size
    described: dict[str, Any] = {
        "feature_dim": int(upper.input_shape[-1]),
        "feature_shape": [side, side, 3],
        "artefacts": {},
        "top": None,
        "upper": _put(store, trunk_id, "upper", "safetensors", uppers.encode(upper)),
    }
    if cut != blocks.INPUT:
        lower = build_trunk_model(recipe.backbone, pretrained.network, has_top=has_top, cut=cut)
        described["feature_shape"] = list(blocks.cut_tensor(recipe.backbone, pretrained.network, cut).shape[1:])
        described["feature_dtype"] = "float16"
        described["artefacts"] = _put_artefacts(store, trunk_id, lower)
        described["network"] = _put(store, trunk_id, "network", "safetensors", uppers.encode(lower))
    return described


def _put_top(store: ObjectStore, trunk_id: TrunkId, top: Tail | None) -> ObjectRef | None:
    return None if top is None else _put(store, trunk_id, "top", "safetensors", top.to_bytes())


def _put(store: ObjectStore, trunk_id: TrunkId, stem: str, suffix: str, data: bytes) -> ObjectRef:
    return put_by_content(store, lambda sha256: names.trunk_artefact(trunk_id, f"{stem}-{sha256[:16]}.{suffix}"), data)
