"""The network above a cut: what fine-tuning starts from, and the tail that it becomes. Imports TensorFlow.

Array axes: B batch, D feature (flattened activations at the cut), F pooled feature, K class.
"""

import keras
import numpy as np
import tensorflow as tf
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ray_cluster.vision import litert_export
from ray_cluster.vision.backbones import build_network, build_upper_model
from ray_cluster.vision.network_tails import HEAD, TrainedNetwork, Weights
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.verified import read_verified
from services.contracts.errors import CorruptObject
from services.contracts.models import ObjectRef, TrunkManifest
from services.runtime.objects.protocol import ObjectStore


def weights_of(upper: keras.Model) -> Weights:
    """Every floating-point variable, frozen ones included, named by its place: Keras' own names depend on how many
    layers the process made before."""
    return {
        f"{place:04d}.{variable.name}": np.ascontiguousarray(variable.numpy(), np.float32)
        for place, variable in enumerate(_float_variables(upper))
    }


def encode(upper: keras.Model) -> bytes:
    """`weights_of` as a safetensors file; equal for equal weights."""
    return save(weights_of(upper))


def load_upper(store: ObjectStore, trunk: TrunkManifest) -> keras.Model:
    """The pretrained network above the trunk's cut. Raises `CorruptObject`, `NotFound`."""
    if trunk.upper is None:
        raise CorruptObject(f"trunk {trunk.trunk_id} does not say what lies above its cut")
    weights = read_weights(store, trunk.upper)
    network = build_network(trunk.backbone, trunk.image_size, None)
    upper = build_upper_model(trunk.backbone, network, has_top=False, cut=trunk.cut)
    assign(upper, weights, trunk.upper.key)
    if upper.input_shape[-1] != trunk.feature_dim:
        raise CorruptObject(f"{trunk.upper.key} does not fit {trunk.backbone} above {trunk.cut}")
    return upper


def read_weights(store: ObjectStore, ref: ObjectRef) -> Weights:
    """A safetensors file. Raises `CorruptObject`, `NotFound`."""
    try:
        return load(read_verified(store, ref))
    except SafetensorError as error:
        raise CorruptObject(f"{ref.key} cannot be read: {error}") from error


def assign(network: keras.Model, weights: Weights, key: str) -> None:
    """The weights that `weights_of` gave, into a network like that one. Raises `CorruptObject`, which names the key."""
    variables = _float_variables(network)
    if [weights[name].shape for name in sorted(weights)] != [tuple(variable.shape) for variable in variables]:
        raise CorruptObject(f"the weights in {key} do not fit the network")
    for variable, name in zip(variables, sorted(weights), strict=True):
        variable.assign(weights[name])


def export_tail(upper: keras.Model, head: Tail) -> TrainedNetwork:
    """The network with this head on its pooled features, for LiteRT and as weights."""
    kernel_FK, bias_K = tf.constant(head.kernel_DK), tf.constant(head.bias_K)

    def logits(features_BD: tf.Tensor) -> tf.Tensor:
        return tf.matmul(upper(features_BD, training=False), kernel_FK) + bias_K

    features = tf.TensorSpec((1, upper.input_shape[-1]), tf.float32, "features")
    weights = weights_of(upper) | {f"{HEAD}.kernel": head.kernel_DK, f"{HEAD}.bias": head.bias_K}
    return TrainedNetwork(litert_export.convert(logits, features), weights)


def _float_variables(upper: keras.Model) -> list[keras.Variable]:
    return [variable for variable in upper.variables if variable.dtype.startswith("float")]
