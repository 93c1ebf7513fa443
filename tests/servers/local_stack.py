"""The real local stack in a home of its own, the command line, and a witness of processes that outlive it."""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_cluster.vision.drawn import draw_dataset
from services.client import Rekindle
from services.contracts import names
from services.contracts.spare import SpareDriver
from services.local.background import BackgroundStack

PR_SET_CHILD_SUBREAPER = 36
COMMAND_WITHIN_S = 240
AT_REST_WITHIN_S = 120
LINGERING_S = 5
"""Processes may take this long to notice that what they belonged to is gone."""


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of Rekindle or Ray."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("REKINDLE_", "RAY_"))}


@dataclass(frozen=True, slots=True)
class LocalStack:
    """A running stack."""

    background: BackgroundStack
    url: str

    @property
    def home(self) -> Path:
        return self.background.home

    def client(self) -> Rekindle:
        return Rekindle(self.url)

    def wait_for_model(self, name: str) -> None:
        """Returns when the model has a version; `base` is imported a while after the start."""
        deadline_s = time.monotonic() + COMMAND_WITHIN_S
        with self.client() as client:
            while name not in {model.name for model in client.models.list()}:
                assert time.monotonic() < deadline_s, f"there is no model {name}: {self.background.log.parent}"
                time.sleep(0.5)

    def run(self, *arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs the `rekindle` command; fails the test on another exit status."""
        result = run_command(*arguments, environment={"REKINDLE_URL": self.url})
        assert result.returncode == status, result.stdout + result.stderr
        return result

    def run_json(self, *arguments: str | Path) -> Any:
        """What the command prints with `--json`."""
        return json.loads(self.run(*arguments, "--json").stdout)


def wait_until_at_rest(home: Path) -> None:
    """Returns when the stack is as it is some seconds after its last job: a driver waits for the next one, and is done
    with its start."""
    deadline_s = time.monotonic() + AT_REST_WITHIN_S
    record = home / "bucket" / names.spare_driver()
    while True:
        spare = SpareDriver.model_validate_json(record.read_bytes()) if record.exists() else None
        if spare is not None and spare.ready and spare.given is None:
            return
        assert time.monotonic() < deadline_s, f"no driver waits for the next job: {spare}"
        time.sleep(0.1)


def run_command(*arguments: str | Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The installed `rekindle` command, without a terminal."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("rekindle")), *map(str, arguments)],
        env={**clean_environment(), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=COMMAND_WITHIN_S,
    )


@contextlib.contextmanager
def running_stack(home: Path, environment: dict[str, str] | None = None) -> Iterator[LocalStack]:
    """A stack from its start to its orderly stop."""
    background = BackgroundStack(home, {**clean_environment(), **(environment or {})})
    background.start()
    try:
        record = background.wait_until_ready()
        yield LocalStack(background, record.url)
    finally:
        status = background.stop()
    assert status == 0, background.log.read_text()


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, mobilenet_weights: Path) -> Iterator[LocalStack]:
    """One stack for all tests of the folder whose conftest imports this, with the pretrained MobileNetV2 as `base`."""
    environment = {
        "REKINDLE_BASE_BACKBONE": "mobilenet_v2",
        "REKINDLE_BASE_WEIGHTS": mobilenet_weights.as_uri(),
        "REKINDLE_BASE_LABELS": (data_dir / "weights" / "imagenet_class_index.json").as_uri(),
    }
    with running_stack(tmp_path_factory.mktemp("stack") / "home", environment) as running:
        yield running


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of drawn images: six classes, `train/` and `test/`."""
    folder = tmp_path_factory.mktemp("drawings") / "objects"
    draw_dataset(folder, train_per_class=24, test_per_class=5)
    return folder


class Orphans:
    """Makes this process the parent of what its descendants leave behind, so that nothing can hide."""

    def __init__(self) -> None:
        self._before = {child.pid for child in psutil.Process().children(recursive=True)}

    def left(self) -> list[str]:
        """Command lines of the processes that are still there after a moment."""
        living = [child for child in psutil.Process().children(recursive=True) if not self._is_of_others(child)]
        _, alive = psutil.wait_procs(living, timeout=LINGERING_S)
        return [" ".join(process.cmdline()) for process in alive if process.status() != psutil.STATUS_ZOMBIE]

    def _is_of_others(self, process: psutil.Process) -> bool:
        """Whether it was there before, or was started by what was: a stack that other tests use."""
        try:
            return any(each.pid in self._before for each in (process, *process.parents()))
        except psutil.NoSuchProcess:
            return False


@pytest.fixture
def orphans() -> Iterator[Orphans]:
    """Set up before anything is started; ask it after everything should be gone."""
    if sys.platform != "linux":
        pytest.fail("orphans can be witnessed on Linux only")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    yield Orphans()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0)
