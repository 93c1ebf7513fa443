"""Every backbone as a Keras network, with the preprocessing that its pretrained weights expect. Imports TensorFlow.

A network maps float32 RGB images with values 0 to 255 to its pooled features or, with a top, to the logits of its
pretrained classifier.

Array axes: B batch, H height, W width, C channel, D feature, K class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from ray_cluster.vision import blocks, tiny
from services.contracts.backbones import BACKBONES, BackboneName
from services.contracts.errors import InternalError

Preprocessing = Callable[[keras.KerasTensor], keras.KerasTensor]
Constructor = Callable[..., keras.Model]


def _tensor(value: object) -> keras.KerasTensor:
    """Keras' annotations allow more than what its functional models hold."""
    if not isinstance(value, keras.KerasTensor):
        raise InternalError(f"expected a symbolic tensor, got {type(value).__name__}")
    return value


def _to_plus_minus_one(images_BHWC: keras.KerasTensor) -> keras.KerasTensor:
    """0..255 to -1..1: what MobileNets and Inception were trained on."""
    return keras.layers.Rescaling(1 / 127.5, offset=-1)(images_BHWC)


def _to_caffe(images_BHWC: keras.KerasTensor) -> keras.KerasTensor:
    """Blue, green, red, each less its mean over ImageNet: what Keras' ResNet50 was trained on."""
    blue_green_red = keras.ops.flip(images_BHWC, axis=-1)
    means = keras.ops.convert_to_tensor([103.939, 116.779, 123.68], "float32")
    return _tensor(keras.ops.subtract(blue_green_red, means))


def _inside(images_BHWC: keras.KerasTensor) -> keras.KerasTensor:
    """Nothing: the network does it itself."""
    return images_BHWC


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one backbone is built, and where its official weights are."""

    construct: Constructor
    preprocess: Preprocessing
    imagenet_url: str | None = None
    """The with-top file that `keras.applications` downloads; its last part is the file's name in Keras' cache."""
    imagenet_hash: str | None = None
    """MD5 or SHA-256 of that file, where Keras knows it."""
    top: str = "dense"
    """Keras' name for the kind of layer that the classifier is, as `.weights.h5` files spell it."""


_URL = "https://storage.googleapis.com/tensorflow/keras-applications/"
_RESNET50 = "resnet/resnet50_weights_tf_dim_ordering_tf_kernels.h5"
_INCEPTION_V3 = "inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels.h5"
_MOBILENET_V2 = "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5"


def _efficientnet_v2(size: str, construct: Constructor, imagenet_hash: str) -> Architecture:
    return Architecture(construct, _inside, f"{_URL}efficientnet_v2/efficientnetv2-{size}.h5", imagenet_hash)


_apps = keras.applications
ARCHITECTURES: dict[BackboneName, Architecture] = {
    BackboneName.REKINDLE_TINY: Architecture(tiny.RekindleTiny, _to_plus_minus_one),
    BackboneName.MOBILENET: Architecture(
        _apps.MobileNet, _to_plus_minus_one, f"{_URL}mobilenet/mobilenet_1_0_224_tf.h5", top="conv2d"
    ),
    BackboneName.MOBILENET_V2: Architecture(_apps.MobileNetV2, _to_plus_minus_one, _URL + _MOBILENET_V2),
    BackboneName.EFFICIENTNET_V2_B0: _efficientnet_v2("b0", _apps.EfficientNetV2B0, "21ecbf6da12460d5c40bb2f29ceb2188"),
    BackboneName.EFFICIENTNET_V2_B1: _efficientnet_v2("b1", _apps.EfficientNetV2B1, "069f0534ff22adf035c89e2d9547a9dc"),
    BackboneName.EFFICIENTNET_V2_B2: _efficientnet_v2("b2", _apps.EfficientNetV2B2, "424e49f28180edbde1e94797771950a7"),
    BackboneName.EFFICIENTNET_V2_B3: _efficientnet_v2("b3", _apps.EfficientNetV2B3, "1f1fc43bd98a6e4fd8fdfd551e02c7a0"),
    BackboneName.RESNET50: Architecture(
        _apps.ResNet50, _to_caffe, _URL + _RESNET50, "2cb95161c43110f7111970584f804107"
    ),
    BackboneName.INCEPTION_V3: Architecture(
        _apps.InceptionV3, _to_plus_minus_one, _URL + _INCEPTION_V3, "9a0d58056eeedaa3f26cb7ebd46da564"
    ),
    BackboneName.CONVNEXT_TINY: Architecture(
        _apps.ConvNeXtTiny,
        _inside,
        f"{_URL}convnext/convnext_tiny.h5",
        "8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff",
    ),
}


def build_network(backbone: BackboneName, image_size: int, classes: int | None) -> keras.Model:
    """The network with random weights and without preprocessing.

    With `classes`, its output is the classifier's logits [B, K]; without, the pooled features [B, D]. ConvNeXt's last
    normalisation counts to the features, as in `keras.applications`.
    """
    options: dict[str, Any] = {"weights": None, "input_shape": (image_size, image_size, 3)}
    if classes is None:
        options |= {"include_top": False, "pooling": "avg"}
    else:
        options |= {"include_top": True, "classes": classes, "classifier_activation": None}
    return ARCHITECTURES[backbone].construct(**options)


def top_layer(backbone: BackboneName, network: keras.Model) -> keras.layers.Layer:
    """The classifier of a network that was built with classes: its last layer with weights."""
    layer = [layer for layer in network.layers if layer.weights][-1]
    kind = keras.layers.Conv2D if ARCHITECTURES[backbone].top == "conv2d" else keras.layers.Dense
    if not isinstance(layer, kind):
        raise InternalError(f"{backbone} ends in a {type(layer).__name__}, not in a {kind.__name__}")
    return layer


def pooled_features(backbone: BackboneName, network: keras.Model, has_top: bool) -> keras.KerasTensor:
    """The network's pooled features, [B, D] with a top or without."""
    if not has_top:
        return _tensor(network.output)
    features = _tensor(top_layer(backbone, network).input)
    return _tensor(keras.ops.reshape(features, (-1, BACKBONES[backbone].feature_dim)))


def build_trunk_model(
    backbone: BackboneName, network: keras.Model, *, has_top: bool, cut: str = blocks.POOLED
) -> keras.Model:
    """uint8 RGB images [B, size, size, 3] to float32 features [B, D], preprocessing included, dropout inactive.

    `cut` is `pooled`, or a block's name; the activations that enter the block are flattened.
    """
    if cut == blocks.POOLED:
        output = pooled_features(backbone, network, has_top)
    else:
        output = blocks.cut_tensor(backbone, network, cut)
    images = keras.Input(network.input_shape[1:], dtype="uint8", name="image")
    lower = keras.Model(network.input, output)
    preprocessed = ARCHITECTURES[backbone].preprocess(_tensor(keras.ops.cast(images, "float32")))
    features = lower(preprocessed, training=False)
    if cut != blocks.POOLED:
        features = keras.ops.reshape(_tensor(features), (-1, blocks.flat_size(output)))
    return keras.Model(images, features)


def build_upper_model(backbone: BackboneName, network: keras.Model, *, has_top: bool, cut: str) -> keras.Model:
    """The rest of the network: float32 features [B, D] of the trunk with this cut to pooled features.

    `cut` is `input`, and then preprocessing is part of it, or a block's name. Batch normalisation is frozen: neither
    its statistics nor its scales are among the trainable variables. The layers are shared with `network`.
    """
    pooled = pooled_features(backbone, network, has_top)
    entry = _tensor(network.input) if cut == blocks.INPUT else blocks.cut_tensor(backbone, network, cut)
    inner = keras.Model(entry, pooled)
    for layer in inner.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    features = keras.Input((blocks.flat_size(entry),), dtype="float32", name="features")
    activations = _tensor(keras.ops.reshape(features, (-1, *entry.shape[1:])))
    if cut == blocks.INPUT:
        activations = ARCHITECTURES[backbone].preprocess(activations)
    return keras.Model(features, inner(activations, training=False))
