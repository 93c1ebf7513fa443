"""Where the local stack keeps its files, who holds the home, and what the last stack in it left behind."""

import contextlib
import fcntl
import getpass
import hashlib
import os
import secrets
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from services.contracts.base import StoredContract
from services.contracts.errors import Conflict, RekindleError


class StackRecord(StoredContract):
    """What is written about a running stack, so that others find it and the next start can clean up after it."""

    marker: str
    """Random; every process of the stack carries it in its environment."""
    pid: int
    started_at_s: float
    """The supervisor's own start time, Unix seconds, to tell it from a later process with the same number."""
    url: str
    """Base URL of the HTTP API."""
    ray_dashboard_url: str
    ready: bool = False
    """Whether requests have been answered."""
    sessions: tuple[tuple[int, float], ...] = ()
    """Process sessions of the stack: leader's number and start time."""


class UnusableHome(RekindleError):
    """The home or the temporary folder cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class StackHome:
    """Paths of one stack. `home` is absolute."""

    home: Path

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def record_path(self) -> Path:
        return self.run / "stack.json"

    @property
    def lock_path(self) -> Path:
        return self.run / "stack.lock"

    @property
    def ray_temp(self) -> Path:
        """Ray's temporary folder: short, because it holds Unix sockets whose paths may not pass 107 characters, and
        the same for every start in this home."""
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:10]
        return Path("/tmp") / f"rekindle-{os.getuid()}-{digest}"  # noqa: S108 - owner and mode are checked

    def prepare(self) -> None:
        """Creates the folders.

        Raises:
            UnusableHome: a folder cannot be created, or somebody else owns the temporary one.
        """
        try:
            for folder in (self.home, self.logs, self.run):
                folder.mkdir(parents=True, exist_ok=True)
            self.ray_temp.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise UnusableHome(
                f"cannot create {error.filename}: {error.strerror}. Set REKINDLE_HOME elsewhere"
            ) from error
        if self.ray_temp.is_symlink() or self.ray_temp.stat().st_uid != os.getuid():
            raise UnusableHome(f"{self.ray_temp} belongs to somebody else: remove it, or set REKINDLE_HOME elsewhere")
        self.ray_temp.chmod(0o700)

    def read_record(self) -> StackRecord | None:
        """The record of the stack that runs or ran here last without a clean stop."""
        try:
            return StackRecord.model_validate_json(self.record_path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:  # written by another release; nothing in it can be trusted
            return None

    def write_record(self, record: StackRecord) -> None:
        """Replaces the record whole."""
        partial = self.record_path.with_suffix(".partial")
        partial.write_text(record.model_dump_json(indent=1))
        partial.replace(self.record_path)

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Holds the home for this process; the kernel lets go when the process ends, however it ends.

        Raises:
            Conflict: another stack runs in this home.
        """
        with self.lock_path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                record = self.read_record()
                where = f" at {record.url} (process {record.pid})" if record else ""
                raise Conflict(
                    f"a stack already runs in {self.home}{where}: use it, stop it with Ctrl-C, or set REKINDLE_HOME to "
                    "another folder"
                ) from error
            yield


def new_marker() -> str:
    """A marker that no other stack has, on any machine."""
    return f"{getpass.getuser()}-{secrets.token_hex(12)}"
