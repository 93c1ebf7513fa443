"""What is particular to a folder: links, other people's files, leftovers, a root that is read only or missing."""

import io
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.contracts.errors import CallerError, NotFound, SourceUnreadable
from services.runtime.objects import durable
from services.runtime.objects.local import LocalStore

OWN = ".rekindle-store"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def keys_of(store: LocalStore, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


# --- reading changes nothing ---


def test_reading_a_users_folder_leaves_no_trace(root: Path) -> None:
    (root / "cats").mkdir()
    (root / "cats" / "1.jpg").write_bytes(b"cat")
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}

    store = LocalStore(root)
    assert (keys_of(store), store.list_folder("").folders) == (["cats/1.jpg"], ["cats"])
    assert (store.get("cats/1.jpg"), store.get_range("cats/1.jpg", 1, 1)) == (b"cat", b"a")
    assert (store.head("none"), store.presign_put("a", 1)) == (None, None)
    store.delete(["none", "cats"])

    assert {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]} == before


@pytest.fixture
def others_folder() -> Iterator[Path]:
    """A folder with one file that this process can read and not write."""
    with tempfile.TemporaryDirectory(prefix="rekindle-") as base:
        folder = Path(base) / "root"
        folder.mkdir()
        (folder / "a.txt").write_bytes(b"1")
        for path in (Path(base), folder):
            path.chmod(0o555)
        is_root = os.geteuid() == 0
        try:
            if is_root:  # root may write everywhere
                os.seteuid(65534)
            yield folder
        finally:
            if is_root:
                os.seteuid(0)
            for path in (Path(base), folder):
                path.chmod(0o755)


def test_a_folder_of_another_user_can_be_read(others_folder: Path) -> None:
    store = LocalStore(others_folder)

    assert (keys_of(store), store.get("a.txt")) == (["a.txt"], b"1")
    for write in (lambda: store.put("b", b"1"), lambda: store.delete(["a.txt"])):
        with pytest.raises(SourceUnreadable, match=r"Permission denied: check the folder's owner"):
            write()


def test_a_missing_root(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "new" / "root")

    with pytest.raises(NotFound):
        store.get("a")
    assert store.head("a") is None
    for listing in (lambda: list(store.list("")), lambda: store.list_folder("")):
        with pytest.raises(SourceUnreadable, match="not a folder"):
            listing()
    store.delete(["a"])
    assert list(tmp_path.iterdir()) == []

    store.put("a", b"1")
    assert keys_of(store) == ["a"]


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(SourceUnreadable, match="not a folder"):
        list(LocalStore(tmp_path / "file").list(""))
    with pytest.raises(CallerError):
        LocalStore(tmp_path / "file").put("a", b"1")


# --- links and other things that lie about ---


def test_links_within_the_root_are_followed(root: Path) -> None:
    (root / "real").mkdir()
    (root / "real" / "1").write_bytes(b"one")
    (root / "link").symlink_to("real")
    (root / "file").symlink_to("real/1")
    store = LocalStore(root)

    assert keys_of(store) == ["file", "link/1", "real/1"]
    assert store.get("link/1") == store.get("file") == b"one"
    assert store.list_folder("").folders == ["link", "real"]


def test_links_out_of_the_root_are_listed_but_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"secret")
    (root / "folder").symlink_to(tmp_path / "secret")
    (root / "file").symlink_to(tmp_path / "secret" / "key")
    store = LocalStore(root)

    assert keys_of(store) == ["file", "folder"]
    assert store.list_folder("").folders == []
    for use in (store.get, store.head, lambda key: store.get_range(key, 0, 1)):
        for key in ("file", "folder/key", "folder"):
            with pytest.raises(SourceUnreadable, match="leads out of"):
                use(key)
    with pytest.raises(SourceUnreadable):
        list(store.list("folder/"))
    with pytest.raises(SourceUnreadable):
        store.put("folder/new", b"1")
    store.delete(["folder/key"])
    assert [path.name for path in (tmp_path / "secret").iterdir()] == ["key"]


def test_a_link_that_is_replaced_or_deleted_leaves_its_target(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"theirs")
    (root / "a").symlink_to(tmp_path / "outside")
    (root / "b").symlink_to(tmp_path / "outside")
    store = LocalStore(root)

    store.put("a", b"ours")
    store.delete(["b"])

    assert (store.get("a"), store.head("b")) == (b"ours", None)
    assert (tmp_path / "outside").read_bytes() == b"theirs"


def test_circles_of_links_end(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "up").symlink_to("..")
    (root / "a" / "self").symlink_to("self")
    (root / "a" / "1").write_bytes(b"")
    store = LocalStore(root)

    assert keys_of(store) == ["a/1", "a/b/up", "a/self"]
    for key in ("a/self", "a/b/up"):
        with pytest.raises((SourceUnreadable, NotFound)):
            store.get(key)


def test_pipes_and_foreign_encodings_are_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(root / "pipe")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.jpg")).write_bytes(b"")
    (root / "fine").write_bytes(b"")
    store = LocalStore(root)

    assert keys_of(store) == ["fine"]
    assert "caf" in caplog.text
    with pytest.raises(NotFound, match="not a file"):
        store.get("pipe")


def test_a_name_is_a_file_or_a_folder(root: Path) -> None:
    store = LocalStore(root)
    store.put("file", b"1")
    store.put("folder/a", b"1")

    for key in ("file/below", "folder"):
        for options in ({}, {"if_absent": True}):
            with pytest.raises(CallerError, match="cannot hold"):
                store.put(key, b"2", **options)
    assert keys_of(store) == ["file", "folder/a"]


@pytest.mark.parametrize("key", ["x" * 256, "é" * 128, "ok/" + "x" * 256])
def test_names_too_long_for_a_file_are_refused(root: Path, key: str) -> None:
    with pytest.raises(CallerError, match="256 bytes"):
        LocalStore(root).put(key, b"1")
    assert LocalStore(root).put("é" * 127, b"1") is not None


@pytest.mark.parametrize("key", ["file/", "folder//a", OWN, f"{OWN}/locks/1"])
def test_other_spellings_of_a_path_reach_nothing(root: Path, key: str) -> None:
    store = LocalStore(root)
    store.put("file", b"1")
    store.put("folder/a", b"1")

    with pytest.raises(NotFound):
        store.get(key)
    store.delete([key])
    assert keys_of(store) == ["file", "folder/a"]
    assert (root / OWN / "locks" / "1").exists()


# --- the store's own files ---


def test_own_files_are_never_listed(root: Path) -> None:
    LocalStore(root / "inner").put("a", b"1")
    store = LocalStore(root)
    store.put("b", b"1")

    assert (root / OWN).is_dir()
    assert keys_of(store) == ["b", "inner/a"]
    assert store.list_folder("").folders == ["inner"]
    assert keys_of(store, ".") == []


def test_nothing_unfinished_stays(root: Path) -> None:
    store = LocalStore(root)
    store.put("a", b"1", if_absent=True)
    store.put("a", b"2", if_absent=True)
    store.put("a", b"3", if_match="stale")
    store.put("a", b"4")
    with pytest.raises(CallerError):
        store.put_stream("b", io.BytesIO(b"1"), 2)

    assert list((root / OWN / "unfinished").iterdir()) == []


def test_opening_removes_what_killed_writers_left_an_hour_ago(root: Path) -> None:
    LocalStore(root).put("a", b"1")
    old, young = root / OWN / "unfinished" / "old", root / OWN / "unfinished" / "young"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    hour_ago = time.time() - durable.STALE_AFTER_S - 60
    os.utime(old, (hour_ago, hour_ago))

    store = LocalStore(root)

    assert (old.exists(), young.exists()) == (False, True)
    assert keys_of(store) == ["a"]


def test_deleting_removes_empty_folders_up_to_the_root(root: Path) -> None:
    store = LocalStore(root)
    store.put("a/b/c/1", b"1")
    store.put("a/2", b"1")

    store.delete(["a/b/c/1"])
    assert [path.name for path in (root / "a").iterdir()] == ["2"]
    store.delete(["a/2"])
    assert [path.name for path in root.iterdir()] == [OWN]


def test_an_etag_never_comes_back(root: Path) -> None:
    """The kernel's clock ticks every few ms and it reuses inodes at once: both would repeat here."""
    store = LocalStore(root)
    etags = []
    for number in range(300):
        if number % 3 == 0:
            store.delete(["a"])
        written = store.put("a", b"same")
        assert written is not None
        etags.append(written.etag)

    assert len(set(etags)) == len(etags)


def test_an_etag_changes_even_if_the_clock_goes_back(root: Path) -> None:
    store = LocalStore(root)
    store.put("a", b"1")
    next_year = time.time_ns() + 365 * 24 * 3600 * 10**9
    os.utime(root / "a", ns=(next_year, next_year))
    read = store.get_with_etag("a")

    assert store.put("a", b"2", if_match=read.etag) is not None
    assert store.put("a", b"3", if_match=read.etag) is None
    assert store.put("a", b"4") is not None
    assert (root / "a").stat().st_mtime_ns > next_year


def test_objects_are_as_readable_as_the_umask_says(root: Path) -> None:
    LocalStore(root).put("a", b"1")

    umask = os.umask(0)
    os.umask(umask)
    assert (root / "a").stat().st_mode & 0o777 == 0o666 & ~umask
