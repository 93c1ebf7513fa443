"""From encoded images to ranked labels: one trunk for all, each image's own tail after it.

Array axes: B batch, H height, W width, C channel, D feature, K class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from ray_cluster.serve.model_tails import LabelledTail
from ray_cluster.vision.engines import Engine
from ray_cluster.vision.images import decode
from services.contracts.errors import ImageRejected
from services.contracts.predictions import Prediction


@dataclass(frozen=True, slots=True)
class Question:
    """One image for one model."""

    image: bytes
    """Encoded, as the client sent it."""
    model: LabelledTail
    top_k: int


class Classifier:
    """Answers batches of questions to different models. Safe to call from as many threads as there are engines.

    More threads than engines wait for one to become free. An answer never depends on the rest of its batch.
    """

    def __init__(self, engines: Sequence[Engine], image_size: int) -> None:
        """All engines run the same trunk, whose input is `image_size` pixels squared."""
        self._image_size = image_size
        self._free: SimpleQueue[Engine] = SimpleQueue()
        for engine in engines:
            self._free.put(engine)

    def answer(self, questions: Sequence[Question]) -> list[list[Prediction] | Exception]:
        """For each question its predictions, most probable first, or `ImageRejected`."""
        answers: list[list[Prediction] | Exception] = []
        pixels: list[npt.NDArray[np.uint8]] = []
        for question in questions:
            try:
                pixels.append(decode(question.image, self._image_size))
                answers.append([])
            except ImageRejected as error:
                answers.append(error)
        usable = [place for place, answer in enumerate(answers) if not isinstance(answer, Exception)]
        if usable:
            for place, features_D in zip(usable, self._features(np.stack(pixels)), strict=True):
                answers[place] = _ranked(questions[place], features_D)
        return answers

    def _features(self, images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        engine = self._free.get()
        try:
            return engine.features(images_BHWC)
        finally:
            self._free.put(engine)


def _ranked(question: Question, features_D: npt.NDArray[np.float32]) -> list[Prediction]:
    # A matrix product over all tails of one shape would copy every kernel to stack them, which costs as much memory
    # traffic as the products themselves; image by image, the bits do not depend on who shares the batch.
    probabilities_K = question.model.tail.probabilities(features_D[np.newaxis])[0]
    best = np.argsort(-probabilities_K, kind="stable")[: question.top_k]
    return [
        Prediction(label=question.model.labels[k], probability=float(probabilities_K[k]), index=int(k)) for k in best
    ]
