"""Checkpoints: whole or not at all.

A checkpoint's objects lie under a prefix of their own and are named by their content; its manifest, with each
object's size and sha256, is created last and only if absent. Readers trust manifests only, verify every hash, and fall
back to the checkpoint before. A manifest that is damaged, or of another state, is replaced in one step.
"""

import hashlib
import logging
import random
import threading
import time
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
from services.contracts.errors import CorruptObject, NotFound, ObjectStoreUnavailable, RekindleError, RetryLater
from services.contracts.ids import JobId
from services.contracts.models import Fingerprint, ObjectRef
from services.runtime.objects import ObjectStore
from services.runtime.objects.retry import RetryPolicy

KEEP = 2
"""Checkpoints of a job that are kept: the newest, and one to fall back to."""

WRITE_POLICY = RetryPolicy(base_delay_s=0.5, max_delay_s=15.0)
"""Between the tries to write a checkpoint; how often is not bounded."""

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


def load_newest(store: ObjectStore, job_id: JobId, *, discard_damaged: bool = False) -> Checkpoint | None:
    """The checkpoint of the greatest (step, attempt, term) that is intact, or None. Any may be resumed from.

    With `discard_damaged` the newer ones that are not are removed: for whoever goes on from here, and whose next
    checkpoint would otherwise keep one of them, and not this one, to fall back to.
    """
    for _, prefix in sorted(_committed(store, job_id), reverse=True):
        try:
            return _load(store, prefix + _MANIFEST)
        except (CorruptObject, NotFound) as error:
            _log.warning("checkpoint %s cannot be used, trying the one before: %s", prefix, error)
            if discard_damaged:
                _remove(store, prefix)
    return None


def commit(
    store: ObjectStore, job_id: JobId, attempt: int, snapshot: Snapshot, fingerprint: Fingerprint, term: int = 0
) -> None:
    """Writes a checkpoint and removes what it makes superfluous. Repeating it is harmless.

    Raises `Fenced` when the attempt or the term was given up, and then nothing was committed; `RetryLater`.
    """
    data = save({name: np.asarray(tensor, order="C") for name, tensor in snapshot.tensors.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"{names.checkpoint_prefix(job_id, attempt, term, snapshot.step)}{_STATE}-{sha256[:16]}.safetensors"
    store.put(key, data)
    manifest = CheckpointManifest(
        job_id=job_id,
        attempt=attempt,
        term=term,
        step=snapshot.step,
        epoch=snapshot.epoch,
        created_at=utc_now(),
        objects={_STATE: ObjectRef(key=key, sha256=sha256, size_bytes=len(data))},
        fingerprint=fingerprint,
        position=snapshot.position,
    )
    check_fence(store, job_id, attempt, term)
    _put_manifest(store, manifest)
    collect_garbage(store, job_id, attempt, term, snapshot.step)


def collect_garbage(store: ObjectStore, job_id: JobId, attempt: int, term: int, step: int) -> None:
    """Removes what the checkpoint just committed makes superfluous: it and the newest before it are kept.

    Checkpoints of earlier attempts and terms that claim a greater step go too: this one would not have been written
    if they could be used, or they came too late. What newer attempts and terms wrote is theirs. A checkpoint's
    manifest goes first: what is half removed is no checkpoint.
    """
    root = names.checkpoints_prefix(job_id)
    committed = {prefix: order for order, prefix in _committed(store, job_id)}
    older = sorted((order for order in committed.values() if order[0] < step), reverse=True)
    kept = {(step, attempt, term), *older[: KEEP - 1]}
    manifests: list[str] = []
    objects: list[str] = []
    for info in store.list(root):
        prefix = info.key[: info.key.rindex("/") + 1]
        order = _order(prefix.removeprefix(root))
        is_ours_unfinished = prefix not in committed and order[1:] == (attempt, term)
        if order in kept or order[1:] > (attempt, term) or is_ours_unfinished:
            continue
        (manifests if info.key.endswith(f"/{_MANIFEST}") else objects).append(info.key)
    store.delete(manifests)
    store.delete(objects)


def _put_manifest(store: ObjectStore, manifest: CheckpointManifest) -> None:
    key = names.checkpoint_manifest(manifest.job_id, manifest.attempt, manifest.term, manifest.step)
    data = manifest.model_dump_json().encode()
    while store.put(key, data, if_absent=True) is None:
        try:
            standing = store.get_with_etag(key)
        except NotFound:
            continue
        if _objects_of(standing.data) == manifest.objects:
            return
        if store.put(key, data, if_match=standing.etag) is not None:
            return


def _objects_of(manifest: bytes) -> dict[str, ObjectRef] | None:
    """What a manifest names, or None where it cannot be read."""
    try:
        return CheckpointManifest.model_validate_json(manifest).objects
    except ValidationError:
        return None


_Order = tuple[int, int, int]


def _committed(store: ObjectStore, job_id: JobId) -> list[tuple[_Order, str]]:
    """((step, attempt, term), prefix) of every checkpoint with a manifest."""
    root = names.checkpoints_prefix(job_id)
    manifests = [info.key for info in store.list(root) if info.key.endswith(f"/{_MANIFEST}")]
    prefixes = [key.removesuffix(_MANIFEST) for key in manifests]
    return [(_order(prefix.removeprefix(root)), prefix) for prefix in prefixes]


def _remove(store: ObjectStore, prefix: str) -> None:
    """The manifest goes first: what is half removed is no checkpoint."""
    store.delete([prefix + _MANIFEST])
    store.delete([info.key for info in store.list(prefix)])


def _order(folder: str) -> _Order:
    """(step, attempt, term) out of `a0001-t0002-s0000000042/`."""
    attempt, term, step = folder.removesuffix("/").split("-")
    return int(step.removeprefix("s")), int(attempt.removeprefix("a")), int(term.removeprefix("t"))


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


@dataclass(frozen=True, slots=True)
class WriterFault:
    """Checkpoints could not be written for a while."""

    error: RetryLater
    lasted_s: float
    """Since the last checkpoint was committed, or the writer began."""
    over: bool
    """Whether one could be written since."""


class CheckpointWriter:
    """Commits snapshots off the training thread, one at a time. A newer snapshot replaces one that still waits.

    A store that fails never stops the training: what waits is written again, with backoff, for as long as that lasts,
    and `on_fault` is told at the beginning, now and then, and at the end. Being fenced does stop it: the next call
    raises `Fenced`.
    """

    def __init__(
        self,
        write: Callable[[Snapshot], None],
        on_fault: Callable[[WriterFault], None],
        policy: RetryPolicy = WRITE_POLICY,
    ) -> None:
        self._write = write
        self._on_fault = on_fault
        self._policy = policy
        self._changed = threading.Condition()
        self._waiting: Snapshot | None = None
        self._offered = 0
        self._written = 0
        """Numbers of the newest snapshot that was offered, and of the newest that is known to be committed."""
        self._closing = False
        self._error: BaseException | None = None
        self._committed_at_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def offer(self, snapshot: Snapshot) -> int:
        """Hands over a snapshot and returns its number at once. Raises what stopped the writer, e.g. `Fenced`."""
        with self._changed:
            self._raise_error()
            self._waiting = snapshot
            self._offered += 1
            self._changed.notify_all()
            return self._offered

    def save_now(self, snapshot: Snapshot, timeout_s: float | None) -> bool:
        """Hands over a snapshot and waits; whether it was committed within `timeout_s`. Raises like `offer`."""
        number = self.offer(snapshot)
        with self._changed:
            self._changed.wait_for(lambda: self._written >= number or self._error is not None, timeout_s)
            self._raise_error()
            return self._written >= number

    def close(self, last: Snapshot | None) -> None:
        """Commits `last`, however long the store takes, and ends. With None, ends after the write in progress; what
        waits is dropped. Raises like `offer`."""
        try:
            if last is not None:
                self.save_now(last, None)
        finally:
            with self._changed:
                self._closing = True
                self._waiting = None
                self._changed.notify_all()
        self._thread.join()
        self._raise_error()

    def _run(self) -> None:
        failures = 0
        while (taken := self._take()) is not None:
            number, snapshot = taken
            try:
                self._write(snapshot)
            except RetryLater as error:
                failures += 1
                self._tell(error, failures)
                self._put_back(snapshot)
                self._pause(failures)
            except (RekindleError, OSError) as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            else:
                if failures:
                    self._tell(ObjectStoreUnavailable("the object store did not answer"), 0)
                failures = 0
                self._committed_at_s = time.monotonic()
                with self._changed:
                    self._written = number
                    self._changed.notify_all()

    def _take(self) -> tuple[int, Snapshot] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closing)
            if self._waiting is None:
                return None
            snapshot, self._waiting = self._waiting, None
            return self._offered, snapshot

    def _put_back(self, snapshot: Snapshot) -> None:
        with self._changed:
            if self._waiting is None and not self._closing:
                self._waiting = snapshot

    def _pause(self, failures: int) -> None:
        delay_s = self._policy.delay_s(failures, 0.0, random.random())  # noqa: S311 - jitter
        with self._changed:
            self._changed.wait_for(lambda: self._closing, delay_s)

    def _tell(self, error: RetryLater, failures: int) -> None:
        """At the first failure, the second, the fourth and so on, and after the last (0)."""
        if failures & (failures - 1) == 0:
            self._on_fault(WriterFault(error, time.monotonic() - self._committed_at_s, over=failures == 0))

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def tensors_of(mapping: Mapping[str, npt.ArrayLike]) -> Tensors:
    """Copies, so that the loop may go on changing its own."""
    return {name: np.array(value) for name, value in mapping.items()}
