"""Trunks on TensorFlow: the engine for GPUs. On a CPU it is slower than the others, and takes seconds to load.

Array axes: B batch, H height, W width, C channel, D feature.
"""

import logging
import threading
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from google.protobuf.message import DecodeError

from ray_cluster.vision.devices import gpu_name
from ray_cluster.vision.engines.kinds import TENSORFLOW, TENSORFLOW_GPU, gpu_version
from ray_cluster.vision.tensorflow_export import IMAGE, RESULT
from services.contracts.errors import CorruptObject, InternalError

GPU_BATCH = 32
"""Images that a GPU takes at a time."""

_log = logging.getLogger(__name__)

Device = Literal["CPU", "GPU"]


class TensorFlowEngine:
    """A frozen graph with input uint8 [B, size, size, 3] and output float32 [B, D], in float32 throughout.

    All batches have the same size, the last one filled up: a library may choose its algorithms by a batch's shape, and
    an image's features must not depend on how many others there are. Calls take turns.
    """

    def __init__(self, graph: bytes, image_size: int, device: Device = "CPU", batch_size: int | None = None) -> None:
        """`batch_size` is that of the device unless given. On a CPU the process' threads are what they are: see
        `use_threads`.

        Raises `CorruptObject` when the bytes are not such a graph, `InternalError` without a GPU where one is wanted.
        """
        self.batch_size = batch_size or (GPU_BATCH if device == "GPU" else 1)
        self.name, self.version = TENSORFLOW, str(tf.__version__)
        if device == "GPU":
            self.name, self.version = TENSORFLOW_GPU, gpu_version(self.version, _prepare_gpu())
        self._image_shape = (image_size, image_size, 3)
        self._lock = threading.Lock()
        self._function = _read(graph, (self.batch_size, *self._image_shape), device)
        self.feature_dim = int(self._function.outputs[0].shape[1])

    def features(self, images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `Engine.features`."""
        if images_BHWC.dtype != np.uint8 or images_BHWC.shape[1:] != self._image_shape:
            raise ValueError(
                f"images {images_BHWC.dtype} {images_BHWC.shape} do not fit a trunk for uint8 {self._image_shape}"
            )
        features_BD = np.empty((len(images_BHWC), self.feature_dim), np.float32)
        full_BHWC = np.zeros((self.batch_size, *self._image_shape), np.uint8)
        with self._lock:
            for start in range(0, len(images_BHWC), self.batch_size):
                batch_BHWC = images_BHWC[start : start + self.batch_size]
                full_BHWC[: len(batch_BHWC)] = batch_BHWC
                computed_BD = self._function(tf.constant(full_BHWC))[0].numpy()
                features_BD[start : start + len(batch_BHWC)] = computed_BD[: len(batch_BHWC)]
        return features_BD


def use_threads(threads: int) -> None:
    """Has TensorFlow compute on so many threads, if it has not computed anything in this process yet."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:  # it has: then whoever began decided
        return


def _read(graph: bytes, image_shape: tuple[int, ...], device: Device) -> Any:
    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(graph)
        with tf.device(f"/{device}:0"):
            return tf.function(
                lambda images_BHWC: tf.graph_util.import_graph_def(
                    graph_def, input_map={IMAGE: images_BHWC}, return_elements=[RESULT], name=""
                )
            ).get_concrete_function(tf.TensorSpec(image_shape, tf.uint8, "images"))
    except (DecodeError, ValueError) as error:
        raise CorruptObject(f"the trunk is not a graph of TensorFlow: {error}") from error


def _prepare_gpu() -> str:
    """The GPU's name. Makes the process take what memory it needs, and compute the same bits each time, in float32
    throughout.

    Deterministic operations choose their algorithms without timing them, and TF32 would keep 10 of 23 bits. XLA times
    its kernels in each process, and is left out.
    """
    found = gpu_name()
    if found is None:
        raise InternalError("TensorFlow sees no GPU: its driver or its libraries are missing, or the process has none")
    try:
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as error:  # the process has used it before, and took all of it then
        _log.warning("the GPU's memory cannot be shared: %s", error)
    tf.config.experimental.enable_tensor_float_32_execution(False)
    tf.config.experimental.enable_op_determinism()
    return found
