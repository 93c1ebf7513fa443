"""Which files a batch prediction labels: listed once, cut into shards once, and the same for every attempt.

An attempt writes the files that it lists page by page under a prefix of its own, then a small object that says so, only
if there is none. Whoever comes later reads that, whatever the source has become. Pages are read one at a time, so
memory does not grow with the source.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from ray_cluster.train.listing import hidden_part, is_folder_marker
from ray_cluster.train.read_ahead import Wanted
from services.contracts import names
from services.contracts.base import StoredContract
from services.contracts.errors import NotFound, SourceEmpty
from services.contracts.ids import JobId
from services.runtime.objects import ObjectInfo, ObjectStore

SHARD_FILES = 256
"""Files of a shard: a few seconds of one core, which is what a lost machine costs."""
PAGE_FILES = 32 * SHARD_FILES

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Shard:
    """Files that one task labels."""

    number: int
    files: tuple[Wanted, ...]
    """In order of paths, which are relative to the source."""


class Snapshot(StoredContract):
    """The files of a batch prediction, as they were when they were listed first."""

    attempt: int
    """Whose pages hold them."""
    page_count: int
    file_count: int
    """At least 1."""
    ignored_count: int
    """Hidden files and folders; a hidden folder counts once."""
    shard_files: int

    @property
    def shard_count(self) -> int:
        return math.ceil(self.file_count / self.shard_files)

    def shard_size(self, number: int) -> int:
        """How many files the shard has."""
        return min(self.shard_files, self.file_count - number * self.shard_files)


class _Page(StoredContract):
    files: list[tuple[str, int]]
    """Path and size in bytes."""


def find(store: ObjectStore, job_id: JobId) -> Snapshot | None:
    """The job's snapshot, or None before there is one."""
    try:
        return Snapshot.model_validate_json(store.get(names.prediction_snapshot(job_id)))
    except NotFound:
        return None


def take(store: ObjectStore, job_id: JobId, attempt: int, source_uri: str, infos: Iterable[ObjectInfo]) -> Snapshot:
    """Writes the job's snapshot of a listing in order of keys, or finds the one that another attempt wrote meanwhile.

    Hidden files and folders are left out. Raises `SourceEmpty` when that leaves none.
    """
    visible = _Visible(infos)
    page_count = 0
    for page in _chunks(visible, PAGE_FILES):
        data = _Page(files=[(info.key, info.size_bytes) for info in page]).model_dump_json().encode()
        store.put(names.prediction_page(job_id, attempt, page_count), data)
        page_count += 1
    if not visible.count:
        hidden = f", only {visible.ignored_count} hidden file(s) or folder(s)" if visible.ignored_count else ""
        raise SourceEmpty(f"there are no files at {source_uri}{hidden}: check the location", {"uri": source_uri})
    snapshot = Snapshot(
        attempt=attempt,
        page_count=page_count,
        file_count=visible.count,
        ignored_count=visible.ignored_count,
        shard_files=SHARD_FILES,
    )
    key = names.prediction_snapshot(job_id)
    if store.put(key, snapshot.model_dump_json().encode(), if_absent=True) is None:
        return Snapshot.model_validate_json(store.get(key))
    return snapshot


def read_shards(store: ObjectStore, job_id: JobId, snapshot: Snapshot) -> Iterator[Shard]:
    """All shards in order, lazily."""

    def files() -> Iterator[Wanted]:
        for page in range(snapshot.page_count):
            data = store.get(names.prediction_page(job_id, snapshot.attempt, page))
            for path, size_bytes in _Page.model_validate_json(data).files:
                yield Wanted(path, size_bytes)

    for number, chunk in enumerate(_chunks(files(), snapshot.shard_files)):
        yield Shard(number, tuple(chunk))


class _Visible:
    """A listing without what is hidden; counts both while it is read."""

    def __init__(self, infos: Iterable[ObjectInfo]) -> None:
        self._infos = infos
        self.count = 0
        self.ignored_count = 0

    def __iter__(self) -> Iterator[ObjectInfo]:
        last_hidden: str | None = None
        for info in self._infos:
            if is_folder_marker(info):
                continue
            hidden = hidden_part(info.key)
            if hidden is None:
                self.count += 1
                yield info
            elif hidden != last_hidden:  # what lies in one folder stands together in the listing
                self.ignored_count += 1
                last_hidden = hidden


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
