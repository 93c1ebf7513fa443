"""Says which tests take long, while they do: a run that is cut off then shows what it was at."""

import threading
import time
from collections.abc import Callable

import pytest

TOOK_LONG_S = 30.0
STILL_AT_IT_EVERY_S = 60.0


class SlowTests:
    """A plugin for the process that reports, whichever processes run the tests."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` writes a line; it is called from two threads."""
        self._say = say
        self._since: dict[str, float] = {}
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._tell_of_those_running, name="slow-tests", daemon=True)

    def pytest_sessionstart(self) -> None:
        self._watch.start()

    def pytest_sessionfinish(self) -> None:
        self._ended.set()
        self._watch.join()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._since[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        took_s = time.monotonic() - self._since.pop(nodeid)
        if took_s >= TOOK_LONG_S:
            self._say(f"took {took_s:.0f} s: {nodeid}")

    def _tell_of_those_running(self) -> None:
        while not self._ended.wait(STILL_AT_IT_EVERY_S):
            now_s = time.monotonic()
            for nodeid, since_s in list(self._since.items()):
                if now_s - since_s >= STILL_AT_IT_EVERY_S:
                    self._say(f"still at it after {now_s - since_s:.0f} s: {nodeid}")


def install(config: pytest.Config) -> None:
    """Does nothing in a process that only runs tests for another one."""
    if hasattr(config, "workerinput"):
        return

    def say(line: str) -> None:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        assert reporter is not None
        reporter.ensure_newline()
        reporter.write_line(line)

    config.pluginmanager.register(SlowTests(say))
