"""`rekindle_tiny`: Rekindle's own small backbone, pretrained on drawings. Imports TensorFlow.

A plain residual network (He et al. 2015, arXiv:1512.03385, section 3.3). At 64 px: 128 features, 0.4 M weights, 1.7 MB.
Full 3x3 convolutions on purpose: on a CPU they train in half the time of depthwise-separable ones.
"""

import keras

STAGES = ((48, 2), (72, 2), (128, 1))
"""Of each stage: channels, and convolutions of its residual block. The stem and every stage halve the sides."""


def _convolution(x: keras.KerasTensor, channels: int, name: str, *, strides: int = 1) -> keras.KerasTensor:
    x = keras.layers.Conv2D(channels, 3, strides, padding="same", use_bias=False, name=name)(x)
    return keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)


def _activated(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return keras.layers.ReLU(name=name)(x)


def _residual(x: keras.KerasTensor, channels: int, convolutions: int, name: str) -> keras.KerasTensor:
    y: keras.KerasTensor = x
    for number in range(1, convolutions + 1):
        y = _convolution(y, channels, f"{name}_conv{number}")
        if number < convolutions:
            y = _activated(y, f"{name}_relu{number}")
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
    images: keras.KerasTensor = keras.Input(input_shape)  # pyright: ignore[reportAssignmentType] - one input, no list
    x = _activated(_convolution(images, 24, "stem", strides=2), "stem_relu")
    for number, (channels, convolutions) in enumerate(STAGES, start=1):
        stage = f"stage{number}"
        x = _activated(_convolution(x, channels, f"{stage}_in", strides=2), f"{stage}_in_relu")
        x = _residual(x, channels, convolutions, f"{stage}_block")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    if include_top:
        x = keras.layers.Dense(classes, activation=classifier_activation, name="predictions")(x)
    return keras.Model(images, x, name="rekindle_tiny")
