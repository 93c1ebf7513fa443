"""The self-test must find stores that ignore conditions. Each store here is a local one with one fault."""

import time
from pathlib import Path

import pytest

from services.contracts.errors import CallerError
from services.runtime.objects import ObjectInfo, self_test
from services.runtime.objects.local import LocalStore


class IgnoresIfAbsent(LocalStore):
    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo | None:
        return super().put(key, data, if_match=if_match)


class IgnoresIfMatch(LocalStore):
    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo | None:
        return super().put(key, data, if_absent=if_absent)


class IgnoresStaleIfMatch(LocalStore):
    """Needs an object to be there, and does not look at its etag."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo | None:
        if if_match is not None and self.head(key) is None:
            return None
        return super().put(key, data, if_absent=if_absent)


class WritesThoughItSaysNo(LocalStore):
    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo | None:
        refused = super().put(key, data, if_absent=if_absent, if_match=if_match) is None
        written = None if refused and self.head(key) is None else super().put(key, data)
        return None if refused else written


class ChecksThenWrites(LocalStore):
    """Looks first and writes then, as Swift does: right alone, wrong together."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo | None:
        if if_absent and self.head(key) is not None:
            return None
        time.sleep(0.02)  # meanwhile another looks
        return super().put(key, data, if_match=if_match)


@pytest.mark.parametrize(
    ("kind", "finding"),
    [
        (IgnoresIfAbsent, "exists already"),
        (IgnoresIfMatch, "does not exist"),
        (IgnoresStaleIfMatch, "wrong etag"),
        (WritesThoughItSaysNo, "though a condition failed"),
        (ChecksThenWrites, "concurrent writers"),
    ],
)
def test_a_store_that_ignores_conditions_is_refused(tmp_path: Path, kind: type[LocalStore], finding: str) -> None:
    store = kind(tmp_path)

    with pytest.raises(CallerError, match=finding) as caught:
        self_test(store)

    assert store.uri in caught.value.message
    assert list(store.list("")) == []


def test_a_store_that_keeps_them_is_accepted(tmp_path: Path) -> None:
    self_test(LocalStore(tmp_path))
