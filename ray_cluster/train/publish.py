"""Publishing a version: a claim, then its objects, then its manifest. Nothing is visible before the manifest is.

The claim binds a version number to a job, so that an attempt after a lost one publishes the same version again and
not a second one, and two jobs that end together get two numbers.
"""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray_cluster.train.fence import check_fence
from ray_cluster.vision.network_tails import TrainedNetwork
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.verified import reference
from services.contracts import names
from services.contracts.errors import NotFound
from services.contracts.ids import JobId
from services.contracts.models import ModelManifest, ObjectRef, VersionClaim
from services.runtime.objects import ObjectStore

_VERSION = re.compile(r"^v(\d+)$")
_READERS = 16

Describe = Callable[[int, ObjectRef, ObjectRef | None], ModelManifest]
"""(version, tail, per-image predictions) to the manifest."""


def publish(
    store: ObjectStore,
    model_name: str,
    job_id: JobId,
    attempt: int,
    tail: Tail | TrainedNetwork,
    predictions: bytes | None,
    describe: Describe,
) -> ModelManifest:
    """Publishes, or finds what an earlier attempt of the job published.

    Raises `Fenced`, and then nothing is visible.
    """
    version = claim_version(store, model_name, job_id)
    published = read_version(store, model_name, version)
    if published is not None:
        return published
    tail_ref, tail_fields = _put_tail(store, tail, lambda name: names.model_object(model_name, version, attempt, name))
    predictions_ref = None
    if predictions is not None:
        predictions_ref = _put(store, names.job_report(job_id, attempt), predictions)
    manifest = describe(version, tail_ref, predictions_ref).model_copy(update=tail_fields)
    check_fence(store, job_id, attempt)
    key = names.model_manifest(model_name, version)
    if store.put(key, manifest.model_dump_json().encode(), if_absent=True) is None:
        return ModelManifest.model_validate_json(store.get(key))
    return manifest


def claim_version(store: ObjectStore, model_name: str, job_id: JobId) -> int:
    """The version that this job may publish: the one it claimed before, else the next free one, claimed for good."""
    taken = list_versions(store, model_name)

    def is_ours(version: int) -> bool:
        return _claimed_by(store, model_name, version) == job_id

    with ThreadPoolExecutor(_READERS) as readers:
        for version, ours in zip(taken, readers.map(is_ours, taken), strict=True):
            if ours:
                return version
    version = max(taken, default=0) + 1
    claim = VersionClaim(job_id=job_id).model_dump_json().encode()
    while store.put(names.model_claim(model_name, version), claim, if_absent=True) is None:
        if is_ours(version):  # an earlier write of ours whose answer was lost
            return version
        version += 1
    return version


def list_versions(store: ObjectStore, model_name: str) -> list[int]:
    """Every version that somebody claimed, published or not, newest first."""
    folders = store.list_folder(names.model_prefix(model_name)).folders
    return sorted((int(match[1]) for folder in folders if (match := _VERSION.match(folder))), reverse=True)


def read_version(store: ObjectStore, model_name: str, version: int) -> ModelManifest | None:
    """The published version, or None where the number is claimed at most."""
    try:
        return ModelManifest.model_validate_json(store.get(names.model_manifest(model_name, version)))
    except NotFound:
        return None


def _claimed_by(store: ObjectStore, model_name: str, version: int) -> JobId | None:
    try:
        return VersionClaim.model_validate_json(store.get(names.model_claim(model_name, version))).job_id
    except NotFound:
        return None


def _put_tail(
    store: ObjectStore, tail: Tail | TrainedNetwork, key_of: Callable[[str], str]
) -> tuple[ObjectRef, dict[str, Any]]:
    """What serving runs, and what the manifest says of it besides."""
    if isinstance(tail, Tail):
        return _put(store, key_of("tail.safetensors"), tail.to_bytes()), {"tail_kind": "linear"}
    weights = _put(store, key_of("weights.safetensors"), tail.weights_bytes())
    return _put(store, key_of("tail.tflite"), tail.flatbuffer), {"tail_kind": "network", "tail_weights": weights}


def _put(store: ObjectStore, key: str, data: bytes) -> ObjectRef:
    store.put(key, data)
    return reference(key, data)
