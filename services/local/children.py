"""One process of the stack that is started, watched, and started again when it dies unasked."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 20.0
HEALTHY_AFTER_S = 30.0
"""A process that lived this long starts its next backoff from the beginning."""
FAILED_STARTS_BEFORE_GIVING_UP = 3
LOG_TAIL_LINES = 15

Say = Callable[[str], None]
"""Tells the person at the terminal one thing."""


@dataclass(frozen=True, slots=True)
class Child:
    """What to start and how to stop it."""

    name: str
    """For people, e.g. `the gateway`."""
    command: list[str]
    environment: dict[str, str]
    log: Path
    stop_within_s: float
    """How long it may take to end after SIGTERM before it is killed."""


class ChildKeepsFailing(Exception):
    """The child ended several times before it ever worked."""


@dataclass(slots=True)
class Backoff:
    """How long to wait before the next start. Pure but for what `lived_s` tells it."""

    failures: int = 0

    def after(self, lived_s: float) -> float:
        """Seconds to wait after a process that lived for `lived_s`."""
        self.failures = 1 if lived_s >= HEALTHY_AFTER_S else self.failures + 1
        return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (self.failures - 1))


async def keep_running(
    child: Child,
    *,
    stop: asyncio.Event,
    worked: asyncio.Event,
    say: Say,
    started: Callable[[int], None],
    cleaned: Callable[[], Awaitable[None]],
) -> None:
    """Runs the child until `stop`, starting it again whenever it ends by itself.

    Args:
        worked: Set once the stack has been ready; before that, a child that keeps ending is given up.
        started: Called with the process's number after each start.
        cleaned: Ends what a dead process left behind, before the next start.

    Raises:
        ChildKeepsFailing: it never worked; the message holds the end of its log.
    """
    backoff = Backoff()
    while not stop.is_set():
        began = time.monotonic()
        process = await _start(child)
        started(process.pid)
        if await _ended_by_itself(process, stop):
            await cleaned()
            wait_s = backoff.after(time.monotonic() - began)
            if not worked.is_set() and backoff.failures >= FAILED_STARTS_BEFORE_GIVING_UP:
                raise ChildKeepsFailing(f"{child.name} does not start:\n{log_tail(child.log)}")
            say(f"{child.name} ended ({_ending(process)}); starting it again in {wait_s:g} s (log: {child.log})")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait_s)
        else:
            await _end(process, child.stop_within_s)


async def _start(child: Child) -> asyncio.subprocess.Process:
    tied = [sys.executable, "-m", "services.local.tied", str(os.getpid()), *child.command]
    with child.log.open("ab") as log:
        # A session of its own, so that Ctrl-C reaches the supervisor alone, which stops things in order.
        return await asyncio.create_subprocess_exec(
            *tied,
            env=child.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


async def _ended_by_itself(process: asyncio.subprocess.Process, stop: asyncio.Event) -> bool:
    """Waits for the process or for `stop`; whether the process came first."""
    ended, stopped = asyncio.ensure_future(process.wait()), asyncio.ensure_future(stop.wait())
    await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
    for task in (ended, stopped):
        task.cancel()
    return not stop.is_set()


async def _end(process: asyncio.subprocess.Process, within_s: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), within_s)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _ending(process: asyncio.subprocess.Process) -> str:
    code = process.returncode
    if code is None:
        return "no exit status"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def log_tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The end of a log, for an error message."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return f"(no log at {log})"
    return "\n".join(text.splitlines()[-lines:])
