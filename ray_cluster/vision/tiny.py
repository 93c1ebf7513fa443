"""`rekindle_tiny`: Rekindle's own small backbone, pretrained on drawn images. Imports TensorFlow.

Residual blocks of depthwise-separable convolutions (Howard et al. 2017, arXiv:1704.04861, section 3.1; residuals as in
Xception, arXiv:1610.02357). At 64 px: 128 features, about 0.25 M weights, 1 MB.
"""

import keras

STAGES = ((32, 1), (64, 2), (96, 2), (128, 2))
"""Channels and residual blocks of each stage. Every stage halves the picture's sides."""


def _normalised(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)


def _separable(x: keras.KerasTensor, channels: int, name: str, *, strides: int = 1) -> keras.KerasTensor:
    """3x3 per channel, then 1x1 across channels, each followed by normalisation."""
    x = keras.layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
    x = keras.layers.ReLU(name=f"{name}_depthwise_relu")(_normalised(x, f"{name}_depthwise"))
    x = keras.layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_pointwise")(x)
    return _normalised(x, f"{name}_pointwise")


def _residual(x: keras.KerasTensor, channels: int, name: str) -> keras.KerasTensor:
    y = keras.layers.ReLU(name=f"{name}_a_relu")(_separable(x, channels, f"{name}_a"))
    y = _separable(y, channels, f"{name}_b")
    return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([x, y]))


def RekindleTiny(  # noqa: N802 - named and called like the constructors of keras.applications
    *,
    input_shape: tuple[int, int, int],
    include_top: bool = True,
    weights: None = None,
    pooling: str | None = "avg",
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
) -> keras.Model:
    """The network with random weights, for float32 images with values -1 to 1.

    Takes the arguments of `keras.applications` that Rekindle uses; `pooling` must be `avg`. Raises `ValueError`.
    """
    if weights is not None or pooling != "avg":
        raise ValueError("RekindleTiny starts from random weights and pools by average")
    images = keras.Input(input_shape)
    x = keras.layers.Conv2D(24, 3, strides=2, padding="same", use_bias=False, name="stem")(images)
    x = keras.layers.ReLU(name="stem_relu")(_normalised(x, "stem"))
    for number, (channels, blocks) in enumerate(STAGES, start=1):
        stage = f"stage{number}"
        strides = 1 if number == 1 else 2
        x = _separable(x, channels, f"{stage}_in", strides=strides)
        x = keras.layers.ReLU(name=f"{stage}_in_relu")(x)
        for block in range(blocks):
            x = _residual(x, channels, f"{stage}_block{block + 1}")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    if include_top:
        x = keras.layers.Dense(classes, activation=classifier_activation, name="predictions")(x)
    return keras.Model(images, x, name="rekindle_tiny")
