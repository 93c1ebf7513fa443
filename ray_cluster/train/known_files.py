"""What preflight found in each file of a dataset, kept in the bucket: a file is read once, however often the dataset
grows, and a preflight that was interrupted goes on where it was.

A file is known by its path, size and ETag. Records are written by whoever read the files, many files to an object; one
that is damaged counts as absent, and its files are read again.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from ray_cluster.train.inspection import Inspected, RejectedFile, UsableImage
from ray_cluster.train.listing import ListedFile
from services.contracts import names
from services.contracts.base import Sha256, StoredContract
from services.contracts.datasets import QuarantineReason
from services.contracts.errors import NotFound
from services.contracts.ids import DatasetId
from services.contracts.models import PREPROCESSING_VERSION
from services.runtime.objects import ObjectInfo, ObjectStore

INSPECTION_VERSION = f"1.{PREPROCESSING_VERSION}"
"""Changes with what a file is taken for: records of another version are not looked at."""
_READERS = 16

_log = logging.getLogger(__name__)
_Key = tuple[str, int, str]


class _Known(StoredContract):
    """A file, and what it is: an image, or why it is none."""

    path: str
    size_bytes: int
    etag: str
    sha256: Sha256 | None = None
    width: int = 0
    height: int = 0
    reason: QuarantineReason | None = None
    message: str = ""


class _Record(StoredContract):
    files: list[_Known]


class KnownFiles:
    """What is known of a dataset's files. A snapshot."""

    def __init__(self, known: dict[_Key, _Known]) -> None:
        self._known = known

    def __len__(self) -> int:
        return len(self._known)

    @classmethod
    def load(cls, store: ObjectStore, dataset_id: DatasetId) -> "KnownFiles":
        """Reads every record. Raises `ObjectStoreUnavailable`."""

        def read(info: ObjectInfo) -> list[_Known]:
            try:
                return _Record.model_validate_json(store.get(info.key)).files
            except (ValidationError, NotFound) as error:
                _log.warning("%s is damaged; its files are read again: %s", info.key, error)
                return []

        infos = list(store.list(names.dataset_inspections(dataset_id, INSPECTION_VERSION)))
        with ThreadPoolExecutor(_READERS) as readers:
            return cls({_key(file): file for files in readers.map(read, infos) for file in files})

    def find(self, file: ListedFile) -> Inspected | None:
        """What the file is, or None where it has to be read. Label and split are those of the listing."""
        known = self._known.get(_key(file))
        if known is None:
            return None
        if known.sha256 is not None:
            return UsableImage(file, known.sha256, known.width, known.height)
        return None if known.reason is None else RejectedFile(file, known.reason, known.message)


def save(store: ObjectStore, dataset_id: DatasetId, inspected: Sequence[Inspected]) -> None:
    """Keeps what these files are, but for those that could not be read: that may pass. Idempotent."""
    files = [found for each in inspected if (found := _known(each)) is not None]
    if not files:
        return
    digest = hashlib.sha256(json.dumps(sorted(map(_key, files))).encode()).hexdigest()
    key = f"{names.dataset_inspections(dataset_id, INSPECTION_VERSION)}{digest}.json"
    store.put(key, _Record(files=files).model_dump_json(exclude_defaults=True).encode())


def find_all(known: KnownFiles, files: Iterable[ListedFile]) -> tuple[list[Inspected], list[ListedFile]]:
    """What is known of the files, and the files that have to be read."""
    found: list[Inspected] = []
    unknown: list[ListedFile] = []
    for file in files:
        inspected = known.find(file)
        if inspected is None:
            unknown.append(file)
        else:
            found.append(inspected)
    return found, unknown


def _known(inspected: Inspected) -> _Known | None:
    file = inspected.file
    where = {"path": file.path, "size_bytes": file.size_bytes, "etag": file.etag}
    if isinstance(inspected, UsableImage):
        return _Known(**where, sha256=inspected.sha256, width=inspected.width, height=inspected.height)
    if inspected.reason is QuarantineReason.UNREADABLE:
        return None
    return _Known(**where, reason=inspected.reason, message=inspected.message)


def _key(file: ListedFile | _Known) -> _Key:
    return file.path, file.size_bytes, file.etag
