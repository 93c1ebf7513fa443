"""What the gateways and Ray Serve agree on: one Serve application per trunk, and its HTTP calls.

`POST {serve_url}{trunk_route(trunk_id)}/predict` carries one encoded image as the raw body. Query: `model`, `version`,
`top_k`. 200 answers `ReplicaPrediction`; 422 `ReplicaError` for an image that cannot be used; 404 `ReplicaError` for a
version that does not exist; 503 with `Retry-After` when the replica's queue is full.
"""

from pydantic import Field, JsonValue

from services.contracts.base import StoredContract
from services.contracts.ids import TrunkId
from services.contracts.predictions import Prediction

IMPORT_PATH = "ray_cluster.serve.application:build"
"""Builds a trunk's Serve application from `TrunkApplicationArgs`."""


class ReplicaScale(StoredContract):
    """How many replicas a trunk has, and how large they are."""

    min_replicas: int = 1
    max_replicas: int = 1
    num_cpus: float = Field(default=0.1, description="Logical CPUs that a replica reserves.")
    threads: int = Field(default=0, description="That compute in a replica; 0 for one per core of its node.")


class TrunkApplicationArgs(ReplicaScale):
    """Arguments of `ray_cluster.serve.application:build`, as they stand in Serve's declarative config."""

    trunk_id: TrunkId
    bucket_uri: str
    max_ongoing_requests: int = 64
    max_queued_requests: int = 256
    tail_cache_bytes: int = 512 * 1024 * 1024


class ReplicaPrediction(StoredContract):
    predictions: list[Prediction]


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
