"""What every object store promises, over all of them."""

import hashlib
import io
import pickle
from datetime import UTC, datetime, timedelta
from typing import BinaryIO, cast

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.contracts.errors import CallerError, NotFound
from services.runtime.objects import ObjectStore, open_object, open_store, self_test
from tests.contract.conftest import NewStore

UNICODE_KEYS = ["Äpfel/grün & süß.jpg", "日本/りんご.png", "emoji/🍎.jpg", "sign/a+b=c %20?#[x]'\"~.txt", "sp ace/ x "]


def keys_of(store: ObjectStore, prefix: str = "", start_after: str | None = None) -> list[str]:
    return [info.key for info in store.list(prefix, start_after=start_after)]


def fill(store: ObjectStore, *keys: str) -> None:
    for key in keys:
        store.put(key, key.encode())


# --- reading back ---


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000], ids=["empty", "one", "1.3MB"])
def test_what_was_put_is_read_back(store: ObjectStore, data: bytes) -> None:
    written = store.put("a/b", data)

    assert written is not None
    assert (written.key, written.size_bytes) == ("a/b", len(data))
    assert store.get("a/b") == data
    assert store.get_with_etag("a/b").etag == written.etag
    assert keys_of(store) == ["a/b"]


def test_put_replaces(store: ObjectStore) -> None:
    store.put("a", b"long content")
    store.put("a", b"short")

    assert store.get("a") == b"short"
    assert keys_of(store) == ["a"]


def test_listing_head_and_put_agree(store: ObjectStore) -> None:
    written = store.put("a/b", b"123")
    [listed] = store.list("")
    head = store.head("a/b")

    assert written is not None
    assert head is not None
    assert (listed.etag, listed.size_bytes) == (head.etag, head.size_bytes) == (written.etag, 3)
    assert listed.modified_at == head.modified_at
    assert abs(datetime.now(UTC) - head.modified_at) < timedelta(minutes=5)
    assert '"' not in head.etag


@pytest.mark.parametrize("key", ["none", "folder/none", "file/below", "folder"])
def test_what_does_not_exist_is_not_found(store: ObjectStore, key: str) -> None:
    fill(store, "file", "folder/file")

    assert store.head(key) is None
    for read in (store.get, store.get_with_etag, lambda key: store.get_range(key, 0, 1)):
        with pytest.raises(NotFound, match=key):
            read(key)


@pytest.mark.parametrize(
    ("start", "size_bytes", "expected"),
    [(0, 3, b"012"), (7, 3, b"789"), (7, 100, b"789"), (9, 1, b"9"), (10, 1, b""), (99, 5, b""), (3, 0, b"")],
)
def test_ranges(store: ObjectStore, start: int, size_bytes: int, expected: bytes) -> None:
    store.put("r", b"0123456789")

    assert store.get_range("r", start, size_bytes) == expected


def test_ranges_of_nothing(store: ObjectStore) -> None:
    store.put("empty", b"")

    assert store.get_range("empty", 0, 10) == b""
    with pytest.raises(NotFound):
        store.get_range("none", 0, 0)
    with pytest.raises(ValueError, match="negative"):
        store.get_range("empty", -1, 1)


@pytest.mark.parametrize("key", UNICODE_KEYS)
def test_unusual_names(store: ObjectStore, key: str) -> None:
    store.put(key, b"here", if_absent=True)
    folder, _, name = key.rpartition("/")

    assert store.get(key) == b"here"
    assert keys_of(store) == [key]
    assert keys_of(store, f"{folder}/{name[0]}") == [key]
    assert store.list_folder("").folders == [folder]
    assert [info.key for info in store.list_folder(f"{folder}/").objects] == [key]
    store.delete([key])
    assert store.head(key) is None


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a/.", "a\0b", "a\nb", "\ud800", ".rekindle-store/locks/1"]
)
def test_bad_keys_are_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(CallerError):
        store.put(key, b"1")
    with pytest.raises(CallerError):
        store.put_stream(key, io.BytesIO(b"1"))
    assert keys_of(store) == []


@pytest.mark.parametrize("key", ["../a", "a/../b", "..", "a\0b", "", "\ud800"])
def test_keys_that_lead_elsewhere_are_not_read_either(store: ObjectStore, key: str) -> None:
    for use in (store.get, store.head, lambda key: store.delete([key])):
        with pytest.raises(CallerError):
            use(key)


def test_too_long_names_are_refused_with_their_length(store: ObjectStore) -> None:
    with pytest.raises(CallerError, match=r"11\d\d bytes"):
        store.put("é" * 550, b"1")


# --- conditions ---


def test_if_absent_writes_once(store: ObjectStore) -> None:
    assert store.put("a", b"1", if_absent=True) is not None
    assert store.put("a", b"1", if_absent=True) is None
    assert store.put("a", b"2", if_absent=True) is None
    assert store.get("a") == b"1"

    store.delete(["a"])
    assert store.put("a", b"3", if_absent=True) is not None


def test_if_absent_yields_to_an_unconditional_write_of_the_same_bytes(store: ObjectStore) -> None:
    store.put("a", b"1")

    assert store.put("a", b"1", if_absent=True) is None


def test_if_match_writes_over_what_was_read(store: ObjectStore) -> None:
    store.put("a", b"1")
    read = store.get_with_etag("a")

    written = store.put("a", b"2", if_match=read.etag)

    assert written is not None
    assert store.put("a", b"3", if_match=read.etag) is None
    assert store.get("a") == b"2"
    assert store.put("a", b"3", if_match=written.etag) is not None


def test_if_match_needs_an_object(store: ObjectStore) -> None:
    written = store.put("a", b"1")
    assert written is not None
    store.delete(["a"])

    assert store.put("a", b"2", if_match=written.etag) is None
    assert store.head("a") is None


def test_conditions_exclude_each_other(store: ObjectStore) -> None:
    with pytest.raises(ValueError, match="exclude"):
        store.put("a", b"1", if_absent=True, if_match="x")


def test_self_test_accepts_the_store_and_leaves_nothing(store: ObjectStore) -> None:
    self_test(store)

    assert keys_of(store) == []


# --- streams ---


class ShortReads(io.RawIOBase):
    """A stream that returns less than it is asked for, as sockets do, and fails at `fail_at`."""

    def __init__(self, size_bytes: int, fail_at: int | None = None, failure: type[Exception] = ConnectionResetError):
        self.remaining, self.sent, self.fail_at, self.failure = size_bytes, 0, fail_at, failure

    def read(self, size: int = -1, /) -> bytes:
        if self.fail_at is not None and self.sent >= self.fail_at:
            raise self.failure("the client went away")
        count = min(self.remaining, 700_001, size)
        self.remaining -= count
        self.sent += count
        return b"s" * count


def stream(size_bytes: int, fail_at: int | None = None, failure: type[Exception] = ConnectionResetError) -> BinaryIO:
    return cast(BinaryIO, ShortReads(size_bytes, fail_at, failure))


@pytest.mark.parametrize("size_bytes", [0, 1, 8 * 2**20 - 1, 8 * 2**20, 20_000_000])
@pytest.mark.parametrize("announced", [True, False])
def test_streams_of_any_length(store: ObjectStore, size_bytes: int, announced: bool) -> None:
    written = store.put_stream("s", stream(size_bytes), size_bytes if announced else None)

    assert written.size_bytes == size_bytes
    assert hashlib.sha256(store.get("s")).digest() == hashlib.sha256(b"s" * size_bytes).digest()
    assert store.head("s") == written or size_bytes < 8 * 2**20


@pytest.mark.parametrize("fail_at", [0, 1_000_000, 17_000_000])
@pytest.mark.parametrize("failure", [ConnectionResetError, RuntimeError])
def test_a_failing_stream_leaves_no_object(store: ObjectStore, fail_at: int, failure: type[Exception]) -> None:
    with pytest.raises(failure, match="went away"):
        store.put_stream("s", stream(20_000_000, fail_at, failure))

    assert store.head("s") is None
    assert keys_of(store) == []


def test_a_failing_stream_leaves_the_old_object(store: ObjectStore) -> None:
    store.put("s", b"old")

    with pytest.raises(ConnectionResetError):
        store.put_stream("s", stream(20_000_000, 17_000_000))

    assert store.get("s") == b"old"


@pytest.mark.parametrize(("size_bytes", "announced"), [(10, 11), (11, 10), (9_000_000, 20_000_000), (20_000_000, 9)])
def test_a_stream_of_another_length_than_announced_is_refused(
    store: ObjectStore, size_bytes: int, announced: int
) -> None:
    with pytest.raises(CallerError, match=str(announced)):
        store.put_stream("s", stream(size_bytes), announced)

    assert store.head("s") is None


# --- listing ---

ORDERED = ["a-b", "a.txt", "a/a/1", "a/b", "a/b.txt", "a0", "b/1", "z", "é", "日", "\uffee", "🍎"]


def test_keys_are_listed_in_the_order_of_their_utf8(store: ObjectStore) -> None:
    fill(store, *[key for key in reversed(ORDERED) if key != "a/b"], "a/b/c")

    listed = keys_of(store)

    assert listed == sorted(listed, key=str.encode)
    assert set(listed) == {*ORDERED, "a/b/c"} - {"a/b"}


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", ["a.txt", "a/1", "a/b/2", "ab/3", "b"]),
        ("a", ["a.txt", "a/1", "a/b/2", "ab/3"]),
        ("a/", ["a/1", "a/b/2"]),
        ("a/b", ["a/b/2"]),
        ("b", ["b"]),
        ("b/", []),
        ("none/", []),
        ("a//", []),
    ],
)
def test_a_prefix_is_a_prefix_of_the_text(store: ObjectStore, prefix: str, expected: list[str]) -> None:
    fill(store, "a.txt", "a/1", "a/b/2", "ab/3", "b")

    assert keys_of(store, prefix) == expected


@pytest.mark.parametrize(
    ("prefix", "start_after", "expected"),
    [
        ("", "a/1", ["a/b/2", "ab/3", "b"]),
        ("", "a/", ["a/1", "a/b/2", "ab/3", "b"]),
        ("", "a/b/2", ["ab/3", "b"]),
        ("", "a/zzz", ["ab/3", "b"]),
        ("", "z", []),
        ("", "", ["a.txt", "a/1", "a/b/2", "ab/3", "b"]),
        ("a/", "a/1", ["a/b/2"]),
        ("a/", "a", ["a/1", "a/b/2"]),
        ("a/", "b", []),
    ],
)
def test_start_after(store: ObjectStore, prefix: str, start_after: str, expected: list[str]) -> None:
    fill(store, "a.txt", "a/1", "a/b/2", "ab/3", "b")

    assert keys_of(store, prefix, start_after) == expected


NAMES = st.text(st.sampled_from("ab0.-_ é\uffee🍎"), min_size=1, max_size=3).filter(
    lambda name: name not in {".", ".."}
)
KEYS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
KEY_SETS = st.sets(KEYS, min_size=1, max_size=8).filter(
    lambda keys: not any(other.startswith(f"{key}/") for key in keys for other in keys)
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=KEY_SETS, prefix=st.one_of(st.just(""), NAMES), start_after=st.one_of(st.none(), KEYS))
def test_any_listing_is_the_sorted_filter_of_its_keys(
    new_store: NewStore, keys: set[str], prefix: str, start_after: str | None
) -> None:
    store = new_store()
    fill(store, *keys)

    expected = [key for key in keys if key.startswith(prefix) and (start_after is None or key > start_after)]
    assert keys_of(store, prefix, start_after) == sorted(expected, key=str.encode)


def test_listings_longer_than_a_page(store: ObjectStore) -> None:
    keys = [f"many/{number:04d}" for number in range(1001)]
    for key in keys:
        store.put(key, b"")

    assert keys_of(store, "many/") == keys
    assert len(store.list_folder("many/").objects) == 1001
    store.delete(keys)
    assert keys_of(store) == []


def test_a_folder_shows_one_level(store: ObjectStore) -> None:
    fill(store, "top", "b/1", "a/1", "a/c/1", "a/c.txt", "a/0", "ab/1")

    top, inner = store.list_folder(""), store.list_folder("a/")

    assert top.folders == ["a", "ab", "b"]
    assert [info.key for info in top.objects] == ["top"]
    assert inner.folders == ["c"]
    assert [info.key for info in inner.objects] == ["a/0", "a/1", "a/c.txt"]
    assert store.list_folder("none/").folders == []


def test_a_folder_listing_stops(store: ObjectStore) -> None:
    fill(store, *[f"f/{number}" for number in range(5)])

    assert [info.key for info in store.list_folder("f/", max_objects=2).objects] == ["f/0", "f/1"]


@pytest.mark.parametrize("prefix", ["/a", "../", "a/../b/", "a\0/"])
def test_bad_prefixes_are_refused(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(CallerError):
        keys_of(store, prefix)
    with pytest.raises(CallerError):
        store.list_folder(prefix)
    with pytest.raises(CallerError, match="end in '/'"):
        store.list_folder("a")


# --- deleting, sending, addressing ---


def test_delete(store: ObjectStore) -> None:
    fill(store, "a/b/1", "a/2", "c")

    store.delete(key for key in ["a/b/1", "c", "none", "a"])

    assert keys_of(store) == ["a/2"]
    assert store.list_folder("a/").folders == []
    store.delete([])


def test_a_store_can_be_sent_to_another_process(store: ObjectStore) -> None:
    store.put("a", b"1")

    received = pickle.loads(pickle.dumps(store))

    assert received.uri == store.uri
    assert received.get("a") == b"1"


def test_one_object_by_uri(store: ObjectStore) -> None:
    store.put("weights/net.h5", b"w")

    parent, key = open_object(f"{store.uri}/weights/net.h5")

    assert (key, parent.get(key)) == ("net.h5", b"w")
    assert open_store(f"{store.uri}/").uri == store.uri


def test_an_uploaded_file_is_an_object(store: ObjectStore) -> None:
    url = store.presign_put("up/größe.bin", 60)
    if url is None:
        assert store.uri.startswith("file:")
        return
    response = httpx2.put(url, content=b"uploaded", timeout=30, trust_env=False)

    assert response.status_code == 200
    assert store.get("up/größe.bin") == b"uploaded"
