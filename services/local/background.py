"""The local stack as a process of its own, for those who need one for a while: the demo and the tests."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.local.children import log_tail
from services.local.home import StackHome, StackRecord
from services.local.stack import READY_WITHIN_S, StackFailed

POLL_S = 0.1
STOP_WITHIN_S = 30.0


@dataclass(slots=True)
class BackgroundStack:
    """`python -m services.local` in a home of its own. It dies with the process that started it."""

    home: Path
    environment: Mapping[str, str]
    """All of the process's environment; `REKINDLE_HOME` is added, and any free port unless one is set."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.home / "logs" / "stack.log"

    def start(self) -> None:
        """Starts it and returns at once. Call `wait_until_ready` next."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {"REKINDLE_PORT": "0", **self.environment, "REKINDLE_HOME": str(self.home)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.local.tied", str(os.getpid()), sys.executable, "-m", "services.local"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> StackRecord:
        """The record of the running stack.

        Raises:
            StackFailed: it ended, or was not ready in time; the message has the end of its log.
        """
        deadline_s = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline_s:
            record = StackHome(self.home).read_record()
            if record is not None and record.ready and record.pid == self._running().pid:
                return record
            time.sleep(POLL_S)
        raise StackFailed(f"the stack was not ready after {READY_WITHIN_S:g} s:\n{log_tail(self.log)}")

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Stops it as Ctrl-C does; returns its exit status. Calling it again changes nothing.

        Raises:
            StackFailed: it had to be killed.
        """
        process = self.process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(number)
        try:
            return process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.wait()
            raise StackFailed(f"the stack did not stop within {STOP_WITHIN_S:g} s:\n{log_tail(self.log)}") from error

    def _running(self) -> subprocess.Popen[bytes]:
        process = self.process
        if process is None:
            raise StackFailed("the stack was not started")
        if process.poll() is not None:
            raise StackFailed(f"the stack ended with status {process.returncode}:\n{log_tail(self.log)}")
        return process
