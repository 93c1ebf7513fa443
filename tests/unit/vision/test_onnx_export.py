"""ONNX models of small functions. `tests/contract/test_backbones.py` has those of whole networks."""

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from ray_cluster.vision import onnx_export
from services.contracts.errors import InternalError

IMAGES = tf.TensorSpec((None, 8, 8, 3), tf.uint8, "image")
KERNEL = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)


def classify(images_BHWC: tf.Tensor) -> tf.Tensor:
    """Padding on one side only, a mean that keeps its axes, and a second path that has its channels last."""
    pixels = tf.cast(images_BHWC, tf.float32) / 255.0
    x = tf.nn.conv2d(pixels, KERNEL, 2, "SAME")
    x = tf.nn.relu6(x - tf.reduce_mean(x, -1, keepdims=True)) * tf.nn.sigmoid(tf.reduce_mean(x, [1, 2], keepdims=True))
    x = tf.concat([x, tf.nn.avg_pool2d(pixels, 2, 2, "SAME")], -1)
    halved = tf.cast(tf.cast(tf.pad(x, [[0, 0], [1, 0], [0, 2], [0, 0]]), tf.float16), tf.float32)
    return tf.nn.softmax(tf.reshape(halved, (-1, 5 * 6 * 7)))


def test_a_function_gives_the_same_numbers_for_any_number_of_images_and_the_same_bytes() -> None:
    encoded = onnx_export.convert(classify, IMAGES, "probabilities")
    assert onnx_export.convert(classify, IMAGES, "probabilities") == encoded
    session = onnxruntime.InferenceSession(encoded, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images_BHWC = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), np.uint8)
        (actual_BK,) = session.run(["probabilities"], {"image": images_BHWC})
        np.testing.assert_allclose(actual_BK, classify(tf.constant(images_BHWC)), rtol=0, atol=1e-6)


def test_an_operation_that_it_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(InternalError, match="TensorFlow's Cumsum"):
        onnx_export.convert(lambda images: tf.cumsum(tf.cast(images, tf.float32)), IMAGES, "sums")
