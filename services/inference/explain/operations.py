"""Explaining: one question to a replica of the trunk, within the deadline of a prediction."""

import asyncio
import time
from dataclasses import dataclass

import structlog

from services.contracts.explanations import Explanation, ExplanationFormat
from services.inference.explain.measures import count_explanation
from services.inference.predict.choosing import choose
from services.inference.predict.inputs import ImageInput
from services.inference.predict.queries import ServedVersion, VersionChoice
from services.inference.predict.resolution import Resolver
from services.inference.replica_answers import ExplainedMap, ExplainedPicture
from services.inference.replicas import Replicas

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Explained:
    """What became of a request."""

    served: ServedVersion
    image_name: str
    answer: ExplainedMap | ExplainedPicture


@dataclass(frozen=True, slots=True)
class Explainer:
    """Answers requests for explanations. One per process."""

    resolver: Resolver
    replicas: Replicas
    deadline_s: float
    """Seconds that a request may take, waiting for a replica included."""

    async def explain(
        self, choice: VersionChoice, image: ImageInput, label: str | None, form: ExplanationFormat, request_id: str
    ) -> Explained:
        """Where in the image the evidence for a label lies; None: for the most probable one.

        Of an alias that is split, the version that `request_id` chooses explains; challengers do not.

        Raises:
            NotFound: no such model, version or alias.
            LabelUnknown: the version has no such label.
            CallerError: the image cannot be used; as `ImageRejected` where its bytes are at fault.
            ModelLoading, Overloaded, ObjectStoreUnavailable, DatabaseUnavailable: try again later.
        """
        deadline = asyncio.get_running_loop().time() + self.deadline_s
        served = choose(await self.resolver.resolve(choice), choice, request_id).served
        data = await image.read_until(deadline, self.deadline_s)
        started_s = time.perf_counter()
        answer = await self.replicas.explain(served, data, label, form, deadline)
        count_explanation(served, form, time.perf_counter() - started_s)
        log.debug(
            "explain.answered",
            model=served.model_name,
            version=served.version,
            label=answer.prediction.label,
            format=form,
        )
        return Explained(served, image.name, answer)


def as_array(explained: Explained, answer: ExplainedMap) -> Explanation:
    """As the API shows it."""
    return Explanation(
        model_name=explained.served.model_name,
        version=explained.served.version,
        image=explained.image_name,
        label=answer.prediction.label,
        probability=answer.prediction.probability,
        index=answer.prediction.index,
        height=len(answer.rows),
        width=len(answer.rows[0]),
        map=answer.rows,
    )
