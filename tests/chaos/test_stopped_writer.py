"""A process that is stopped while it commits to a local store keeps nobody waiting, and undoes nothing later."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.runtime.objects import turns
from services.runtime.objects.local import LocalStore

KEY = "jobs/1/fence.json"
STOPPED_WRITER = """
import os, signal, sys
from pathlib import Path
from services.contracts.errors import ObjectStoreUnavailable
from services.runtime.objects import local

stamp = local._stamp
def stop_then_stamp(*arguments):
    os.kill(os.getpid(), signal.SIGSTOP)
    stamp(*arguments)
local._stamp = stop_then_stamp

root, key, condition = sys.argv[1:]
conditions = {"always": {}, "if_absent": {"if_absent": True}}.get(condition, {"if_match": condition})
try:
    print(local.LocalStore(Path(root)).put(key, b"of the stopped", **conditions))
except ObjectStoreUnavailable as error:
    print(error)
"""


@contextmanager
def stopped_writer(root: Path, key: str, condition: str) -> Iterator[subprocess.Popen[str]]:
    """A process that stopped itself between looking at the object and giving it its new content."""
    command = [sys.executable, "-c", STOPPED_WRITER, str(root), key, condition]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                assert process.poll() is None
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "OVERTAKE_AFTER_S", 0.3)


@pytest.mark.parametrize("condition", ["always", "if_match"])
def test_others_go_on_and_the_stopped_one_fails_when_it_wakes(tmp_path: Path, condition: str) -> None:
    store = LocalStore(tmp_path)
    first = store.put(KEY, b"first")
    assert first is not None
    with stopped_writer(tmp_path, KEY, first.etag if condition == "if_match" else condition) as stopped:
        second = store.put(KEY, b"second", if_match=first.etag)
        assert second is not None
        assert store.put("other", b"1") is not None

        stopped.send_signal(signal.SIGCONT)
        said, _ = stopped.communicate()

    assert "another writer went ahead: write again" in said
    assert store.get_with_etag(KEY).data == b"second"
    third = store.put(KEY, b"third", if_match=second.etag)
    assert third is not None
    assert [path.name for path in (tmp_path / ".rekindle-store" / "locks").iterdir()] == ["2"]
    assert not list((tmp_path / ".rekindle-store" / "unfinished").iterdir())


def test_of_two_that_create_an_object_the_stopped_one_does_not_win_later(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with stopped_writer(tmp_path, KEY, "if_absent") as stopped:
        store.put("other", b"1")
        stopped.send_signal(signal.SIGCONT)
        said, _ = stopped.communicate()
        assert "write again" in said
        assert store.put(KEY, b"ours", if_absent=True) is not None
    assert store.get(KEY) == b"ours"


def test_a_killed_writer_leaves_its_turn_to_the_next(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with stopped_writer(tmp_path, KEY, "always") as stopped:
        stopped.kill()
        stopped.wait()
        assert store.put(KEY, b"next") is not None
    assert store.get(KEY) == b"next"
    assert [path.name for path in (tmp_path / ".rekindle-store" / "locks").iterdir()] == ["1"]
