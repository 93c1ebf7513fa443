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
    keep_features: bool = False
    """Whether somebody else has a use for what the trunk makes of the image."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What became of a question."""

    predictions: list[Prediction]
    """Most probable first."""
    features_D: npt.NDArray[np.float32] | None
    """The trunk's, where the question wanted them kept."""


class Classifier:
    """Answers batches of questions to different models. Safe to call from as many threads as there are engines.

    More threads than engines wait for one to become free. An answer never depends on the rest of its batch.
    """

    def __init__(self, engines: Sequence[Engine], image_size: int) -> None:
        """All engines run the same trunk, whose input is `image_size` pixels squared."""
        self.batch_size = engines[0].batch_size
        """How many questions it had best be given at a time."""
        self._image_size = image_size
        self._free: SimpleQueue[Engine] = SimpleQueue()
        for engine in engines:
            self._free.put(engine)

    def answer(self, questions: Sequence[Question]) -> list[Answer | Exception]:
        """For each question its answer, or `ImageRejected`."""
        answers: list[Answer | Exception] = []
        pixels: list[npt.NDArray[np.uint8]] = []
        for question in questions:
            try:
                pixels.append(decode(question.image, self._image_size))
                answers.append(_PENDING)
            except ImageRejected as error:
                answers.append(error)
        usable = [place for place, answer in enumerate(answers) if not isinstance(answer, Exception)]
        if usable:
            for place, features_D in zip(usable, self.features(np.stack(pixels)), strict=True):
                question = questions[place]
                # A copy: a view would keep the features of the whole batch.
                kept_D = features_D.copy() if question.keep_features else None
                answers[place] = Answer(ranked(question.model, features_D, question.top_k), kept_D)
        return answers

    def features(self, images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What the trunk makes of the images, by the next engine that is free; see `Engine.features`."""
        engine = self._free.get()
        try:
            return engine.features(images_BHWC)
        finally:
            self._free.put(engine)


_PENDING = Answer([], None)


def ranked(model: LabelledTail, features_D: npt.NDArray[np.float32], top_k: int) -> list[Prediction]:
    """The model's labels for one image, most probable first, at most `top_k`. Blocks for as long as the tail takes."""
    # A matrix product over all tails of one shape would copy every kernel to stack them, which costs as much memory
    # traffic as the products themselves; image by image, the bits do not depend on who shares the batch.
    probabilities_K = model.tail.probabilities(features_D[np.newaxis])[0]
    best = np.argsort(-probabilities_K, kind="stable")[:top_k]
    return [Prediction(label=model.labels[k], probability=float(probabilities_K[k]), index=int(k)) for k in best]
