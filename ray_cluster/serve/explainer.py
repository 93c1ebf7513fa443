"""Explains answers: where in an image the evidence for a label lies, as an array or drawn over the image.

Needs a second network beside the engines, one that also gives the map before the pooling: the trunk's for a head, the
version's own for a fine-tuned one. They are made when they are asked for, from what is in the bucket for serving.

Array axes: B batch, H height, W width, C channel, D feature, K class.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ray_cluster.serve.breaks import Breaks
from ray_cluster.serve.model_tails import LabelledTail, TailKey, read_network
from ray_cluster.vision.engines import read_flatbuffer
from ray_cluster.vision.heat_maps import heat, overlay, png
from ray_cluster.vision.images import decode, decode_for_people
from ray_cluster.vision.tails import FloatArray, Tail, softmax
from services.contracts.models import TrunkManifest
from services.contracts.predictions import Prediction
from services.contracts.serving import ReplicaExplanation
from services.runtime.objects.protocol import ObjectStore

if TYPE_CHECKING:
    from ray_cluster.vision.activation_maps import MappedNetwork

NETWORK_BYTES = 256 * 1024 * 1024
"""Networks beyond it are dropped, the one used longest ago first; the one used last stays, however large it is."""
MAX_SIDE = 640
"""Of a picture in pixels."""
_DECIMALS = 4

log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class WhyQuestion:
    """One image, one version, one label."""

    image: bytes
    """Encoded, as the client sent it."""
    key: TailKey
    model: LabelledTail
    """The version's."""
    label: str | None
    """One of the model's; None for the most probable one."""
    drawn: bool
    """Whether a picture is wanted, and not an array."""


@dataclass(frozen=True, slots=True)
class DrawnExplanation:
    """The image with the map laid over it."""

    prediction: Prediction
    png: bytes


class Explainer:
    """Answers one question after the other: `answer` is not to be called by several threads at the same time.

    That way a network is loaded once, and no more of them are in memory than are kept.
    """

    def __init__(
        self,
        store: ObjectStore,
        trunk: TrunkManifest,
        features: Callable[[npt.NDArray[np.uint8]], FloatArray],
        network_bytes: int = NETWORK_BYTES,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """`features` runs the trunk; fine-tuned versions need it. While it is `busy` with predictions, explanations
        take breaks."""
        self._store = store
        self._trunk = trunk
        self._features = features
        self._network_bytes = network_bytes
        self._breaks = Breaks(busy)
        self._networks: OrderedDict[TailKey | None, MappedNetwork] = OrderedDict()
        """By version; the trunk's has None."""

    def answer(self, questions: Sequence[WhyQuestion]) -> list[ReplicaExplanation | DrawnExplanation]:
        """Each question's explanation, one by one. Blocks.

        Raises `ImageRejected`, and as `load_tail` does where a network has to be read.
        """
        explained: list[ReplicaExplanation | DrawnExplanation] = []
        for question in questions:
            with self._breaks.before():
                explained.append(self._explain(question))
        return explained

    def _explain(self, question: WhyQuestion) -> ReplicaExplanation | DrawnExplanation:
        pixels_BHWC = decode(question.image, self._trunk.image_size)[np.newaxis]
        probabilities_K, k, class_map_HW = self._class_map(question, pixels_BHWC)
        prediction = Prediction(label=question.model.labels[k], probability=float(probabilities_K[k]), index=k)
        heat_HW = heat(class_map_HW)
        if question.drawn:
            shown_HWC = decode_for_people(question.image, MAX_SIDE)
            return DrawnExplanation(prediction, png(overlay(shown_HWC, heat_HW)))
        rows = [[round(value, _DECIMALS) for value in row] for row in heat_HW.tolist()]
        return ReplicaExplanation(prediction=prediction, map=rows)

    def _class_map(
        self, question: WhyQuestion, pixels_BHWC: npt.NDArray[np.uint8]
    ) -> tuple[FloatArray, int, FloatArray]:
        """All probabilities [K], the class that is explained, and its map [H, W]."""
        tail = question.model.tail
        if isinstance(tail, Tail):
            network = self._network(None, lambda: read_flatbuffer(self._store, self._trunk))
            mapped = network.run(pixels_BHWC)
            probabilities_K = tail.probabilities(mapped.output_D[np.newaxis])[0]
        else:
            network = self._network(question.key, lambda: read_network(self._store, self._trunk, question.key))
            mapped = network.run(self._features(pixels_BHWC))
            probabilities_K = softmax(mapped.output_D[np.newaxis])[0]
        k = int(probabilities_K.argmax()) if question.label is None else question.model.labels.index(question.label)
        direction_D = tail.kernel_DK[:, k] if isinstance(tail, Tail) else np.eye(tail.class_count, dtype=np.float32)[k]
        return probabilities_K, k, network.class_map(mapped, direction_D)

    def _network(self, key: TailKey | None, read: Callable[[], bytes]) -> "MappedNetwork":
        network = self._networks.pop(key, None)
        if network is None:
            network = self._load(key, read)
        self._networks[key] = network
        return network

    def _load(self, key: TailKey | None, read: Callable[[], bytes]) -> "MappedNetwork":
        """Makes room when it knows the new network's size, before that is in memory."""
        # LiteRT's schema takes 38 MB of memory and 0.3 s, which replicas that are never asked why do without.
        from ray_cluster.vision.activation_maps import MappedNetwork  # noqa: PLC0415

        started_at = time.perf_counter()
        flatbuffer = read()
        size_bytes = MappedNetwork.size_bytes_of(flatbuffer)
        while self._networks and self._kept_bytes() + size_bytes > self._network_bytes:
            self._networks.popitem(last=False)
        network = MappedNetwork(flatbuffer)
        log.info(
            "explain.network_loaded",
            extra={
                "model": None if key is None else key.model_name,
                "version": None if key is None else key.version,
                "size_bytes": network.size_bytes,
                "duration_s": round(time.perf_counter() - started_at, 4),
            },
        )
        return network

    def _kept_bytes(self) -> int:
        return sum(network.size_bytes for network in self._networks.values())
