"""Finding and reading weight files, without TensorFlow."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.contracts.errors import CallerError, WeightsUnusable
from services.contracts.jobs import WeightsUri
from services.runtime.objects import ObjectInfo, open_object

BUNDLED_WEIGHTS = Path(__file__).parent / "assets" / "rekindle_tiny.weights.h5"
MAX_BYTES = 4 * 1024**3
_CHUNK_BYTES = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class WeightFile:
    """Weights on the local disk."""

    path: Path
    sha256: str


def hash_file(path: Path) -> str:
    """SHA-256 of a local file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_uri(uri: str) -> str:
    """SHA-256 of the file's bytes, read as a stream. Raises `WeightsUnusable` when there is no such file."""
    digest = hashlib.sha256()
    for chunk in _chunks(uri):
        digest.update(chunk)
    return digest.hexdigest()


def fetch(weights: WeightsUri, folder: Path) -> WeightFile:
    """Copies the file into the folder.

    Raises `WeightsUnusable` when there is no such file, or when its bytes are not those of `weights.sha256`.
    """
    path = folder / "pretrained.h5"
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in _chunks(weights.uri):
            digest.update(chunk)
            file.write(chunk)
    if weights.sha256 is not None and digest.hexdigest() != weights.sha256:
        raise WeightsUnusable(
            f"the weights at {weights.uri} have sha256 {digest.hexdigest()}, not {weights.sha256}: "
            "the file changed, or the hash is another file's",
            {"uri": weights.uri},
        )
    return WeightFile(path, digest.hexdigest())


def _chunks(uri: str) -> Iterator[bytes]:
    if not uri.endswith(".h5"):
        raise WeightsUnusable(f"{uri} is not a Keras weights file: its name must end in .h5", {"uri": uri})
    try:
        store, name = open_object(uri)
        size_bytes = _checked_size(uri, store.head(name))
        for start in range(0, size_bytes, _CHUNK_BYTES):
            yield store.get_range(name, start, min(_CHUNK_BYTES, size_bytes - start))
    except WeightsUnusable:
        raise
    except CallerError as error:
        raise WeightsUnusable(f"the weights at {uri} cannot be read: {error}", {"uri": uri}) from error


def _checked_size(uri: str, info: ObjectInfo | None) -> int:
    if info is None:
        raise WeightsUnusable(f"there is no weights file at {uri}", {"uri": uri})
    if info.size_bytes > MAX_BYTES:
        raise WeightsUnusable(
            f"the weights at {uri} have {info.size_bytes} bytes: at most {MAX_BYTES} are read", {"uri": uri}
        )
    return info.size_bytes
