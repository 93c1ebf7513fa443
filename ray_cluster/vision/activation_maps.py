"""Class activation maps: where in an image the evidence for a class lies. LiteRT and NumPy; no TensorFlow.

A network that pools its last map by the mean depends on it by nothing else. So the map's channels, weighted by the
gradient of the class's logit with respect to the pooled values, say what each place contributes. Where only a linear
layer follows, the weights are that layer's (CAM: Zhou et al. 2016, arXiv:1512.04150, section 2), and the mean over all
places, plus the bias, is the logit itself. In general they are Grad-CAM's (Selvaraju et al. 2017, arXiv:1610.02391,
section 3), times the number of places.

Array axes: H height and W width of the map, C channel, D the network's output, K class.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from ray_cluster.vision.after_pooling import output_and_gradient
from ray_cluster.vision.pooled_graphs import read_pooled_graph, with_outputs
from ray_cluster.vision.tails import FloatArray
from services.contracts.errors import CorruptObject

_MEMORY_PER_BYTE = 3.25
"""The flatbuffer, its weights packed for the processor, and activations; as `network_tails`, which does without the
bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Mapped:
    """What a network makes of one input."""

    output_D: FloatArray
    map_HWC: FloatArray
    """What it pools."""


class MappedNetwork:
    """A trunk or a network tail whose last map can be seen. Runs on one thread; not to be shared by several."""

    def __init__(self, flatbuffer: bytes) -> None:
        """Raises `CorruptObject` for bytes that are no model, and `InternalError` where the output does not come from
        a mean over a map."""
        try:
            self._graph = read_pooled_graph(flatbuffer)
            outputs = (self._graph.output_tensor, self._graph.map_tensor)
            interpreter = Interpreter(model_content=with_outputs(flatbuffer, outputs), num_threads=1)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise CorruptObject(f"the network is not a LiteRT model: {error}") from error
        self._interpreter = interpreter
        self._input_index = int(interpreter.get_input_details()[0]["index"])
        self._output_index, self._map_index = (int(each["index"]) for each in interpreter.get_output_details())
        self.size_bytes = self.size_bytes_of(flatbuffer)

    @staticmethod
    def size_bytes_of(flatbuffer: bytes) -> int:
        """Memory that the network of these bytes holds."""
        return int(_MEMORY_PER_BYTE * len(flatbuffer))

    def run(self, example: npt.NDArray[np.generic]) -> Mapped:
        """The network's output for one example, which has a first axis of length 1.

        Raises `ValueError` for another shape or dtype than the network's.
        """
        self._interpreter.set_tensor(self._input_index, example)
        self._interpreter.invoke()
        return Mapped(
            self._interpreter.get_tensor(self._output_index)[0], self._interpreter.get_tensor(self._map_index)[0]
        )

    def class_map(self, mapped: Mapped, direction_D: FloatArray) -> FloatArray:
        """What each place of the map adds to the output's product with `direction_D`, times the number of places.

        float32 [H, W]. For a class's logit the direction is the class's column of the head's kernel, or, where the
        head is part of the network, 1 at the class and 0 elsewhere.
        """
        pooled_C = mapped.map_HWC.mean(axis=(0, 1), dtype=np.float64)
        _, weights_C = output_and_gradient(self._graph, pooled_C, direction_D)
        return (mapped.map_HWC @ weights_C).astype(np.float32)
