"""Checkpoints: whole or not at all.

A checkpoint's objects lie under a prefix of their own; its manifest, with each object's size and sha256, is created
last and only if absent. Readers trust manifests only, verify every hash, and fall back to the checkpoint before.
"""

import hashlib
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ray_cluster.train.fence import check_fence
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.checkpoints import CheckpointManifest
from services.contracts.errors import CorruptObject, NotFound, RekindleError, RetryLater
from services.contracts.ids import JobId
from services.contracts.models import Fingerprint, ObjectRef
from services.runtime.objects import ObjectStore

KEEP = 2
"""Checkpoints of a job that are kept: the newest, and one to fall back to."""

_STATE = "state"
_MANIFEST = "manifest.json"
_log = logging.getLogger(__name__)

Tensors = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Loop state at the end of an epoch, not shared with the running loop."""

    step: int
    epoch: int
    tensors: Tensors
    position: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint."""

    manifest: CheckpointManifest
    tensors: Tensors


def load_newest(store: ObjectStore, job_id: JobId) -> Checkpoint | None:
    """The checkpoint of the greatest (step, attempt) that is intact, or None. Any attempt's may be resumed from."""
    for _, prefix in sorted(_committed(store, job_id), reverse=True):
        try:
            return _load(store, prefix + _MANIFEST)
        except (CorruptObject, NotFound) as error:
            _log.warning("checkpoint %s cannot be used, trying the one before: %s", prefix, error)
    return None


def commit(store: ObjectStore, job_id: JobId, attempt: int, snapshot: Snapshot, fingerprint: Fingerprint) -> None:
    """Writes a checkpoint and removes what it makes superfluous. Repeating it is harmless.

    Raises `Fenced` when the attempt was given up, and then nothing was committed; `RetryLater`.
    """
    data = save({name: np.asarray(tensor, order="C") for name, tensor in snapshot.tensors.items()})
    key = f"{names.checkpoint_prefix(job_id, attempt, snapshot.step)}{_STATE}.safetensors"
    store.put(key, data)
    manifest = CheckpointManifest(
        job_id=job_id,
        attempt=attempt,
        step=snapshot.step,
        epoch=snapshot.epoch,
        created_at=utc_now(),
        objects={_STATE: ObjectRef(key=key, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))},
        fingerprint=fingerprint,
        position=snapshot.position,
    )
    check_fence(store, job_id, attempt)
    manifest_key = names.checkpoint_manifest(job_id, attempt, snapshot.step)
    store.put(manifest_key, manifest.model_dump_json().encode(), if_absent=True)
    collect_garbage(store, job_id, attempt)


def collect_garbage(store: ObjectStore, job_id: JobId, attempt: int) -> None:
    """Removes all but the newest `KEEP` checkpoints, and what earlier attempts left without a manifest.

    A checkpoint's manifest goes first: what is half removed is no checkpoint.
    """
    committed = {prefix: order for order, prefix in _committed(store, job_id)}
    kept = sorted(committed, key=lambda prefix: committed[prefix], reverse=True)[:KEEP]
    root = names.checkpoints_prefix(job_id)
    manifests: list[str] = []
    objects: list[str] = []
    for info in store.list(root):
        prefix = info.key[: info.key.rindex("/") + 1]
        unfinished = prefix not in committed
        if prefix in kept or (unfinished and _order(prefix.removeprefix(root))[1] >= attempt):
            continue
        (manifests if info.key.endswith(f"/{_MANIFEST}") else objects).append(info.key)
    store.delete(manifests)
    store.delete(objects)


def _committed(store: ObjectStore, job_id: JobId) -> list[tuple[tuple[int, int], str]]:
    """((step, attempt), prefix) of every checkpoint with a manifest."""
    root = names.checkpoints_prefix(job_id)
    manifests = [info.key for info in store.list(root) if info.key.endswith(f"/{_MANIFEST}")]
    prefixes = [key.removesuffix(_MANIFEST) for key in manifests]
    return [(_order(prefix.removeprefix(root)), prefix) for prefix in prefixes]


def _order(folder: str) -> tuple[int, int]:
    """(step, attempt) out of `a0001-s0000000042/`."""
    attempt, step = folder.removesuffix("/").split("-s")
    return int(step), int(attempt.removeprefix("a"))


def _load(store: ObjectStore, manifest_key: str) -> Checkpoint:
    try:
        manifest = CheckpointManifest.model_validate_json(store.get(manifest_key))
        ref = manifest.objects[_STATE]
        data = store.get(ref.key)
        if len(data) != ref.size_bytes or hashlib.sha256(data).hexdigest() != ref.sha256:
            raise CorruptObject(f"{ref.key} does not match its manifest")
        return Checkpoint(manifest, dict(load(data)))
    except (ValidationError, KeyError, SafetensorError) as error:
        raise CorruptObject(f"{manifest_key} cannot be read: {error}") from error


class CheckpointWriter:
    """Commits snapshots off the training thread, one at a time. A newer snapshot replaces one that still waits.

    A store that fails does not stop the training: `on_fault` is told, and the next snapshot tries again. Being fenced
    does: the next `offer` or `close` raises `Fenced`.
    """

    def __init__(self, write: Callable[[Snapshot], None], on_fault: Callable[[RetryLater], None]) -> None:
        self._write = write
        self._on_fault = on_fault
        self._waiting: queue.Queue[Snapshot | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def offer(self, snapshot: Snapshot) -> None:
        """Hands over a snapshot and returns at once. Raises what stopped the writer, e.g. `Fenced`."""
        self._raise_error()
        while True:
            try:
                self._waiting.put_nowait(snapshot)
            except queue.Full:
                self._drop_waiting()
            else:
                return

    def close(self, last: Snapshot | None) -> None:
        """Waits for the write in progress, then writes `last` on this thread. Raises `Fenced`, `RetryLater`."""
        self._drop_waiting()
        self._waiting.put(None)
        self._thread.join()
        self._raise_error()
        if last is not None:
            self._write(last)

    def _run(self) -> None:
        while (snapshot := self._waiting.get()) is not None:
            try:
                self._write(snapshot)
            except RetryLater as error:
                self._on_fault(error)
            except (RekindleError, OSError) as error:
                self._error = error
                self._drop_waiting()
                return

    def _drop_waiting(self) -> None:
        try:
            self._waiting.get_nowait()
        except queue.Empty:
            return

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def tensors_of(mapping: Mapping[str, npt.ArrayLike]) -> Tensors:
    """Copies, so that the loop may go on changing its own."""
    return {name: np.array(value) for name, value in mapping.items()}
