"""Tails that are networks: what a fine-tuning job trains above the cut. LiteRT and safetensors; no TensorFlow.

Array axes: B batch, D feature, K class.
"""

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter
from safetensors.numpy import save

from ray_cluster.vision.tails import FloatArray, softmax, tensors_sha256
from services.contracts.errors import CorruptObject

HEAD = "head"
"""Prefix of the head's tensors among the weights."""

Weights = dict[str, npt.NDArray[np.float32]]

_MEMORY_PER_BYTE = 2.25
"""XNNPACK keeps a second copy of the weights, packed for the processor, and there are the activations. Measured: 2.1
resident bytes for each byte of `rekindle_tiny` above its fourth block."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainedNetwork:
    """A network tail as training leaves it."""

    flatbuffer: bytes
    """What evaluation and serving run (`NetworkTail`)."""
    weights: Weights
    """What it was made from."""

    def weights_bytes(self) -> bytes:
        """A safetensors file without metadata; equal for equal weights."""
        return save(self.weights)

    def sha256(self) -> str:
        """Over the weights' names, dtypes, shapes and bytes."""
        return tensors_sha256(self.weights)


class NetworkTail:
    """A network on a trunk's features, run by LiteRT with XNNPACK on one thread.

    Safe to call from several threads: calls take turns. Rows run one by one, so an image's answer cannot depend on its
    neighbours.
    """

    def __init__(self, flatbuffer: bytes) -> None:
        """Raises `CorruptObject` when the bytes do not map float32 [1, D] to float32 [1, K]."""
        try:
            interpreter = Interpreter(model_content=flatbuffer, num_threads=1)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise CorruptObject(f"the tail is not a LiteRT model: {error}") from error
        ends = [*interpreter.get_input_details(), *interpreter.get_output_details()]
        if len(ends) != 2 or any(end["dtype"] != np.float32 or len(end["shape"]) != 2 for end in ends):
            raise CorruptObject("the tail does not map one row of features to one row of logits")
        self._interpreter = interpreter
        self._input_index, self._output_index = (int(end["index"]) for end in ends)
        self._lock = threading.Lock()
        self.feature_dim, self.class_count = (int(end["shape"][1]) for end in ends)
        self.size_bytes = int(_MEMORY_PER_BYTE * len(flatbuffer))

    def logits(self, features_BD: FloatArray) -> FloatArray:
        """See `AnyTail.logits`."""
        if features_BD.ndim != 2 or features_BD.shape[1] != self.feature_dim:
            raise ValueError(f"features {features_BD.shape} do not fit a tail on {self.feature_dim} features")
        logits_BK = np.empty((len(features_BD), self.class_count), np.float32)
        with self._lock:
            for row, features_D in enumerate(features_BD):
                self._interpreter.set_tensor(self._input_index, features_D[np.newaxis].astype(np.float32, copy=False))
                self._interpreter.invoke()
                logits_BK[row] = self._interpreter.get_tensor(self._output_index)[0]
        return logits_BK

    def probabilities(self, features_BD: FloatArray) -> FloatArray:
        """See `AnyTail.probabilities`."""
        return softmax(self.logits(features_BD))
