"""Ten thousand models in a bucket, made by hand: random heads on one trunk."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.contracts.models import TrunkManifest
from services.runtime.objects import open_store
from tests.servers.published import publish, random_tail

CLASSES = 10
WRITERS = 8


def names(count: int) -> Iterator[str]:
    """Of the first so many."""
    return (f"many-{number:05d}" for number in range(count))


def publish_many(bucket: Path, trunk: TrunkManifest, count: int) -> None:
    """Writes their versions 1 to the bucket; `rekindle restore` then tells the database."""
    store = open_store(bucket.as_uri())
    labels = [f"class {number}" for number in range(CLASSES)]

    def write(numbered: tuple[int, str]) -> None:
        seed, name = numbered
        publish(store, trunk, name, 1, random_tail(trunk.feature_dim, CLASSES, seed), labels)

    with ThreadPoolExecutor(WRITERS) as pool:
        for _ in pool.map(write, enumerate(names(count))):
            pass


def head_bytes(trunk: TrunkManifest) -> int:
    """What one head's own weights weigh, float32."""
    return 4 * CLASSES * (trunk.feature_dim + 1)
