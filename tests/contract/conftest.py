"""The implementations that one contract suite runs over, each for real."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from services.runtime.objects import ObjectStore, open_store

NewStore = Callable[[], ObjectStore]


@pytest.fixture(params=["local", "s3"])
def new_store(request: pytest.FixtureRequest) -> NewStore:
    """Makes empty stores: folders, or prefixes in a bucket of a real S3 server."""
    if request.param == "s3":
        base = request.getfixturevalue("s3_bucket")
    else:
        folder: Path = request.getfixturevalue("tmp_path")
        base = folder.as_uri()
    numbers = itertools.count()
    return lambda: _open(f"{base}/stores-{next(numbers)}")


@pytest.fixture
def store(new_store: NewStore) -> ObjectStore:
    """An empty store."""
    return new_store()


def _open(uri: str) -> ObjectStore:
    store = open_store(uri)
    store.put("made", b"")  # a local folder exists once something was written to it
    store.delete(["made"])
    return store
