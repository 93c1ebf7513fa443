"""Checks at start that a store keeps the conditions of conditional writes. Some servers that speak S3 ignore them."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier

from services.contracts import names
from services.contracts.errors import CallerError, RekindleError
from services.runtime.objects.protocol import ObjectInfo, ObjectStore

_RACES = 3
_RACERS = 8
_START_TIMEOUT_S = 30
_STALE_ETAG = "0" * 32


def self_test(store: ObjectStore) -> None:
    """Writes, races, reads and deletes a few objects of its own; about 40 requests.

    Raises `CallerError` naming the store when it cannot be trusted with jobs, and whatever the store raises when it
    cannot be reached or written.
    """
    keys = [names.store_check(secrets.token_hex(8)) for _ in range(_RACES + 1)]
    try:
        _check_conditions(store, keys[0])
        for key in keys[1:]:
            _check_race(store, key)
    finally:
        with suppress(RekindleError):  # the finding matters more than the cleaning up
            store.delete(keys)


def _check_conditions(store: ObjectStore, key: str) -> None:
    _require(store, store.put(key, b"none", if_match=_STALE_ETAG) is None, "wrote over an object that does not exist")
    first = store.put(key, b"first", if_absent=True)
    if first is None:
        raise _refusal(store, "refused to create an object that does not exist")
    _require(store, store.put(key, b"second", if_absent=True) is None, "created an object that exists already")
    _require(store, store.put(key, b"third", if_match=_STALE_ETAG) is None, "wrote over an object at the wrong etag")
    _require(store, store.get(key) == b"first", "changed an object though a condition failed")
    second = store.put(key, b"fourth", if_match=first.etag)
    _require(store, second is not None, "refused to write over an object at its own etag")
    _require(store, store.put(key, b"fifth", if_match=first.etag) is None, "wrote over an object at an older etag")
    _require(store, store.get(key) == b"fourth", "does not show an object's last write")


def _check_race(store: ObjectStore, key: str) -> None:
    start = Barrier(_RACERS)

    def write(racer: int) -> ObjectInfo | None:
        start.wait(_START_TIMEOUT_S)
        return store.put(key, b"%d" % racer, if_absent=True)

    with ThreadPoolExecutor(_RACERS) as pool:
        results = pool.map(write, range(_RACERS))
        winners = sum(result is not None for result in results)
    _require(store, winners == 1, f"let {winners} of {_RACERS} concurrent writers create the same object")


def _require(store: ObjectStore, kept: bool, finding: str) -> None:
    if not kept:
        raise _refusal(store, finding)


def _refusal(store: ObjectStore, finding: str) -> CallerError:
    return CallerError(
        f"the object store {store.uri} {finding}: Rekindle needs conditional writes (If-None-Match and If-Match)"
    )
