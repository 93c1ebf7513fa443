"""Trunks on ONNX Runtime: the fastest engine for some networks on a CPU.

Array axes: B batch, H height, W width, C channel, D feature.
"""

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as refusals  # pyright: ignore[reportAttributeAccessIssue]

from ray_cluster.vision.engines.kinds import ONNX
from services.contracts.errors import CorruptObject

_REFUSALS = (refusals.Fail, refusals.InvalidArgument, refusals.InvalidGraph, refusals.InvalidProtobuf)


class OnnxEngine:
    """A session over a model with input uint8 [1 or any, size, size, 3] and output float32 [., D].

    Images run one by one, as in `LiteRTEngine` and for the same reasons. A session may run in several threads at once.
    """

    name = ONNX
    version = onnxruntime.__version__
    batch_size = 1

    def __init__(self, model: bytes, threads: int = 1) -> None:
        """Raises `CorruptObject` when the bytes are not such a model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except _REFUSALS as error:
            raise CorruptObject(f"the trunk is not an ONNX model: {error}") from error
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(uint8)" or len(outputs[0].shape) != 2:
            raise CorruptObject("the ONNX model does not map uint8 images to feature vectors")
        self._session = session
        self._input = str(inputs[0].name)
        self._image_shape = tuple(inputs[0].shape[1:])
        self.feature_dim = int(outputs[0].shape[1])

    def features(self, images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `Engine.features`."""
        if images_BHWC.dtype != np.uint8 or images_BHWC.shape[1:] != self._image_shape:
            raise ValueError(
                f"images {images_BHWC.dtype} {images_BHWC.shape} do not fit a trunk for uint8 {self._image_shape}"
            )
        features_BD = np.empty((len(images_BHWC), self.feature_dim), np.float32)
        for row, image_HWC in enumerate(images_BHWC):
            (computed_1D,) = self._session.run(None, {self._input: image_HWC[np.newaxis]})
            features_BD[row] = np.asarray(computed_1D)[0]
        return features_BD
