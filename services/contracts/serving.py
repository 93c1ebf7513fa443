"""What the gateways and Ray Serve agree on: one Serve application per trunk, and its HTTP calls.

All calls are the same at Serve's proxy (`serve_url`) and at a replica's own port.

`POST {serve_url}{trunk_route(trunk_id)}/predict` carries one encoded image as the raw body. Query: `model`, `version`,
`top_k`. 200 answers `ReplicaPrediction`; 422 `ReplicaError` for an image that cannot be used; 404 `ReplicaError` for a
version that does not exist; 503 with `Retry-After` when the replica's queue is full and no other model has more images
in it.

The header `x-rekindle-challenger` names another version of the model on the same trunk, to be scored on the same pass
of the trunk. Then 200 answers two lines of NDJSON: `ReplicaPrediction` at once, and `ReplicaScore` when there is one.
Whatever becomes of the challenger, the first line is as it would be without. A replica of a release without the header
ignores it and answers plain JSON.

`POST …/predict-batch` carries several images, also for different models: `pack` makes its body. 200 answers
`ReplicaAnswers`, what `predict` would have answered for each; other statuses concern all of them. None waits long for
another's head: one that is not loaded soon is answered with code `model_loading`, to be asked again.

`POST …/explain` carries one encoded image as the raw body. Query: `model`, `version`, `format`, and `label` where it is
not the most probable one that is to be explained. 200 answers `ReplicaExplanation` for the format `json`; for `png` it
answers the picture, and the header `x-rekindle-prediction` has the `Prediction`, in ASCII. 422 for a label that the
version does not have; 503 when as many explanations wait as may. Otherwise as `predict`.
"""

from collections.abc import Sequence

from pydantic import Field, JsonValue, ValidationError

from services.contracts.base import StoredContract
from services.contracts.errors import CallerError
from services.contracts.ids import TrunkId
from services.contracts.predictions import Prediction

IMPORT_PATH = "ray_cluster.serve.application:build"
"""Builds a trunk's Serve application from `TrunkApplicationArgs`."""


CHALLENGER_HEADER = "x-rekindle-challenger"
PREDICTION_HEADER = "x-rekindle-prediction"


class ReplicaScale(StoredContract):
    """How many replicas a trunk has, and how large they are."""

    min_replicas: int = 1
    max_replicas: int = 1
    num_cpus: float = Field(default=0.1, description="Logical CPUs that a replica reserves.")
    num_gpus: float = Field(default=0, description="GPUs that it reserves, e.g. 0.5; 0 for none.")
    threads: int = Field(default=0, description="That compute in a replica; 0 for one per core of its node.")


class TrunkApplicationArgs(ReplicaScale):
    """Arguments of `ray_cluster.serve.application:build`, as they stand in Serve's declarative config."""

    trunk_id: TrunkId
    bucket_uri: str
    max_waiting_images: int = Field(default=256, description="Images that wait in a replica; models share it fairly.")
    max_ongoing_requests: int = Field(
        default=512,
        description="More than wait and are worked on, so that Serve's own queue, which knows no models, stays empty.",
    )
    max_queued_requests: int = Field(default=128, description="Requests that Serve holds while replicas come and go.")
    target_ongoing_requests: int = Field(
        default=3,
        description="For each replica, where their number is not fixed: batches that a gateway sends at once.",
    )
    tail_cache_bytes: int = 512 * 1024 * 1024


class ReplicaPrediction(StoredContract):
    predictions: list[Prediction]


class ReplicaScore(StoredContract):
    """What a challenger said of the image, or why it did not."""

    label: str | None = Field(description="The most probable one; null: see `dropped` and `error`.")
    dropped: bool = Field(default=False, description="The replica has too much to do for challengers.")
    error: str | None = None


class ReplicaExplanation(StoredContract):
    """Where the evidence for a label lies; see `Explanation.map`."""

    prediction: Prediction
    map: list[list[float]]


class ReplicaError(StoredContract):
    code: str
    message: str
    details: dict[str, JsonValue] = Field(default_factory=dict)


class ReplicaQuestion(StoredContract):
    """One image of a batch."""

    model: str
    version: int
    top_k: int
    size_bytes: int
    """Of the encoded image."""


class ReplicaQuestions(StoredContract):
    questions: list[ReplicaQuestion]


class ReplicaAnswers(StoredContract):
    answers: list[ReplicaPrediction | ReplicaError]


_LENGTH_BYTES = 4


def pack(questions: Sequence[ReplicaQuestion], images: Sequence[bytes]) -> bytes:
    """A batch's body: the length of the questions' JSON (4 bytes, big-endian), that JSON, and the images."""
    head = ReplicaQuestions(questions=list(questions)).model_dump_json().encode()
    return b"".join([len(head).to_bytes(_LENGTH_BYTES, "big"), head, *images])


def unpack(body: bytes) -> list[tuple[ReplicaQuestion, bytes]]:
    """What `pack` was given. Raises `CallerError` for anything else."""
    start = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "big")
    try:
        questions = ReplicaQuestions.model_validate_json(body[_LENGTH_BYTES:start]).questions
    except ValidationError as error:
        raise CallerError("the body does not begin with the questions of a batch") from error
    found: list[tuple[ReplicaQuestion, bytes]] = []
    for question in questions:
        found.append((question, body[start : start + question.size_bytes]))
        start += question.size_bytes
    if start != len(body):
        raise CallerError(f"the body has {len(body)} bytes, and its questions say {start}")
    return found


def application_name(trunk_id: TrunkId) -> str:
    """The Serve application's name in the dashboard."""
    return f"trunk-{trunk_id[:16]}"


def trunk_route(trunk_id: TrunkId) -> str:
    """The Serve application's route prefix."""
    return f"/trunks/{trunk_id}"
