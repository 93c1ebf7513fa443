"""The formats of exports: writing a network, and running what was written as its users will. Imports TensorFlow.

Array axes: B batch, H height, W width, C channel, K class.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from ray_cluster.vision import onnx_export
from ray_cluster.vision.trunk_builder import convert_to_litert
from ray_cluster.vision.whole import INPUT, OUTPUT
from services.contracts.exports import ExportedTensor, ExportFormat

FILES = {
    ExportFormat.KERAS: "model.keras",
    ExportFormat.SAVEDMODEL: "saved_model",
    ExportFormat.TFLITE: "model.tflite",
    ExportFormat.ONNX: "model.onnx",
}
"""What the model is called in its archive: a file, or for SavedModel a folder."""

Classify = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""uint8 RGB images [B, size, size, 3] to probabilities [B, K]."""


def write(network: keras.Model, form: ExportFormat, path: Path) -> None:
    """The network of `whole.load_version` as a file, or folder, that is not there yet."""
    match form:
        case ExportFormat.KERAS:
            network.save(path)
        case ExportFormat.SAVEDMODEL:
            network.export(path, format="tf_saved_model", verbose=False)
        case ExportFormat.TFLITE:
            path.write_bytes(convert_to_litert(network))
        case ExportFormat.ONNX:
            images = tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8, INPUT)
            path.write_bytes(
                onnx_export.convert(lambda images_BHWC: network(images_BHWC, training=False), images, OUTPUT)
            )


def load(form: ExportFormat, path: Path) -> Classify:
    """What was written, loaded by the format's own library alone."""
    match form:
        case ExportFormat.KERAS:
            network: Any = keras.saving.load_model(path, compile=False, safe_mode=True)
            return lambda images_BHWC: np.asarray(network(images_BHWC, training=False))
        case ExportFormat.SAVEDMODEL:
            serve: Any = tf.saved_model.load(str(path))
            return lambda images_BHWC: np.asarray(serve.serve(images_BHWC))
        case ExportFormat.TFLITE:
            return _load_tflite(path)
        case ExportFormat.ONNX:
            return _load_onnx(path)


def _load_tflite(path: Path) -> Classify:
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - of no use to the other formats

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def classify(images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        rows: list[npt.NDArray[np.float32]] = []
        for image_HWC in images_BHWC:
            interpreter.set_tensor(source["index"], image_HWC[np.newaxis])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(result["index"])[0])
        return np.stack(rows)

    return classify


def _load_onnx(path: Path) -> Classify:
    import onnxruntime  # noqa: PLC0415 - of no use to the other formats

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images_BHWC: np.asarray(session.run([OUTPUT], {INPUT: images_BHWC})[0])


def tensors(network: keras.Model, form: ExportFormat) -> tuple[ExportedTensor, ExportedTensor]:
    """Input and output, as the format names them."""
    batch = 1 if form is ExportFormat.TFLITE else None
    return (
        ExportedTensor(name=INPUT, dtype="uint8", shape=[batch, *network.input_shape[1:]]),
        ExportedTensor(name=OUTPUT, dtype="float32", shape=[batch, *network.output_shape[1:]]),
    )
