"""Keeping a process running."""

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.local.children import (
    BACKOFF_MAX_S,
    HEALTHY_AFTER_S,
    Backoff,
    Child,
    ChildKeepsFailing,
    keep_running,
)


@dataclass
class Run:
    """`keep_running` with everything it tells."""

    child: Child
    said: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    cleaned: int = 0
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    worked: asyncio.Event = field(default_factory=asyncio.Event)
    has_started: asyncio.Event = field(default_factory=asyncio.Event)

    async def keep(self) -> None:
        await keep_running(
            self.child,
            stop=self.stop,
            worked=self.worked,
            say=self.said.append,
            started=self._started,
            cleaned=self._clean,
        )

    def _started(self, pid: int) -> None:
        self.pids.append(pid)
        self.has_started.set()

    async def _clean(self) -> None:
        self.cleaned += 1


def python(tmp_path: Path, program: str, stop_within_s: float = 5) -> Run:
    command = [sys.executable, "-c", program]
    return Run(Child("the child", command, dict(os.environ), tmp_path / "child.log", stop_within_s))


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what other processes do sets no event
            await asyncio.sleep(0.01)


async def test_a_child_that_never_works_is_given_up_with_its_log(tmp_path: Path) -> None:
    run = python(tmp_path, "print('no such option'); raise SystemExit(3)")
    with pytest.raises(ChildKeepsFailing, match="no such option"):
        await run.keep()
    assert len(run.pids) == run.cleaned == 3
    assert "exit status 3" in run.said[0]


async def test_a_child_that_is_killed_is_started_again(tmp_path: Path) -> None:
    run = python(tmp_path, "import time; time.sleep(60)")
    run.worked.set()
    keeping = asyncio.create_task(run.keep())
    await run.has_started.wait()
    run.has_started.clear()
    os.kill(run.pids[0], 9)
    await run.has_started.wait()
    run.stop.set()
    await keeping
    assert len(set(run.pids)) == 2
    assert run.cleaned == 1
    assert "killed by SIGKILL" in run.said[0]


async def test_a_child_that_ignores_sigterm_is_killed_in_time(tmp_path: Path) -> None:
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    run = python(tmp_path, program, stop_within_s=0.2)
    keeping = asyncio.create_task(run.keep())
    await run.has_started.wait()
    await until(lambda: "deaf" in run.child.log.read_text())
    run.stop.set()
    await asyncio.wait_for(keeping, 10)
    assert not runs(run.pids[0])
    assert run.said == []


async def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """A parent starts a child and is killed; the kernel kills the child."""
    program = (
        "import os, subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'services.local.tied', str(os.getpid()), sys.executable, '-c',"
        " 'import time; print(1, flush=True); time.sleep(60)']\n"
        "child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await until(lambda: not runs(child))


@given(st.lists(st.floats(min_value=0, max_value=HEALTHY_AFTER_S - 1), min_size=1, max_size=30))
def test_failures_in_a_row_wait_longer_up_to_a_limit(lifetimes_s: list[float]) -> None:
    backoff = Backoff()
    waits = [backoff.after(lived_s) for lived_s in lifetimes_s]
    assert waits == sorted(waits)
    assert max(waits) <= BACKOFF_MAX_S


def test_a_long_life_starts_the_backoff_anew() -> None:
    backoff = Backoff()
    first = backoff.after(0)
    assert backoff.after(0) > first
    assert backoff.after(HEALTHY_AFTER_S) == first
