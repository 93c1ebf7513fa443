"""What the gateways and Ray Serve agree on: one Serve application per trunk, and its HTTP calls.

`POST {serve_url}{trunk_route(trunk_id)}/predict` carries one encoded image as the raw body. Query: `model`, `version`,
`top_k`. 200 answers `ReplicaPrediction`; 422 `ReplicaError` for an image that cannot be used; 404 `ReplicaError` for a
version that does not exist; 503 with `Retry-After` when the replica's queue is full and no other model has more images
in it.

The header `x-rekindle-challenger` names another version of the model on the same trunk, to be scored on the same pass
of the trunk. Then 200 answers two lines of NDJSON: `ReplicaPrediction` at once, and `ReplicaScore` when there is one.
Whatever becomes of the challenger, the first line is as it would be without. A replica of a release without the header
ignores it and answers plain JSON.
"""

from pydantic import Field, JsonValue

from services.contracts.base import StoredContract
from services.contracts.ids import TrunkId
from services.contracts.predictions import Prediction

IMPORT_PATH = "ray_cluster.serve.application:build"
"""Builds a trunk's Serve application from `TrunkApplicationArgs`."""


CHALLENGER_HEADER = "x-rekindle-challenger"


class TrunkApplicationArgs(StoredContract):
    """Arguments of `ray_cluster.serve.application:build`, as they stand in Serve's declarative config."""

    trunk_id: TrunkId
    bucket_uri: str
    min_replicas: int = 1
    max_replicas: int = 1
    num_cpus: float = Field(default=0.1, description="Logical CPUs a replica reserves.")
    max_waiting_images: int = Field(default=128, description="Images that wait in a replica; models share it fairly.")
    max_ongoing_requests: int = Field(
        default=256,
        description="More than wait and are worked on, so that Serve's own queue, which knows no models, stays empty.",
    )
    max_queued_requests: int = Field(default=128, description="Requests that Serve holds while replicas come and go.")
    target_ongoing_requests: int = Field(
        default=32, description="For each replica, where their number is not fixed: room for bursts."
    )
    tail_cache_bytes: int = 512 * 1024 * 1024


class ReplicaPrediction(StoredContract):
    predictions: list[Prediction]


class ReplicaScore(StoredContract):
    """What a challenger said of the image, or why it did not."""

    label: str | None = Field(description="The most probable one; null: see `dropped` and `error`.")
    dropped: bool = Field(default=False, description="The replica has too much to do for challengers.")
    error: str | None = None


class ReplicaError(StoredContract):
    code: str
    message: str
    details: dict[str, JsonValue] = Field(default_factory=dict)


def application_name(trunk_id: TrunkId) -> str:
    """The Serve application's name in the dashboard."""
    return f"trunk-{trunk_id[:16]}"


def trunk_route(trunk_id: TrunkId) -> str:
    """The Serve application's route prefix."""
    return f"/trunks/{trunk_id}"
