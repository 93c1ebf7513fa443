"""How large a stack's processes get."""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import psutil

EVERY_S = 0.5
WORKERS = ("inspect_task", "feature_task", "build_trunk_task", "Trainer")
"""Kinds of process that work on images, features or networks."""
DRIVER = "driver"


def kind_of(command_line: Sequence[str]) -> str | None:
    """What a process is for, by its command line; None for Ray's own and for those that are idle.

    Ray names its workers after what they run, with an actor's own name before its class: `ray::feature_task`,
    `ray::trainer-0.1.0-6b9c:Trainer.wait`, `ray::ServeReplica:trunk-33fc:trunk`.
    """
    command = " ".join(command_line).strip()
    if command.startswith("ray::"):
        title = command.removeprefix("ray::")
        kind = "ServeReplica" if title.startswith("ServeReplica") else title.rpartition(":")[2].partition(".")[0]
        return None if kind == "IDLE" else kind
    if "-m ray_cluster.train.attempt" in command:
        return DRIVER
    return None


class MemoryWatch:
    """Looks at the processes' resident sets again and again, in a thread, until it is left."""

    def __init__(self, processes: Callable[[], Sequence[psutil.Process]]) -> None:
        self.peaks: dict[str, int] = {}
        """Bytes of the largest process that was seen, by kind."""
        self._processes = processes
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(EVERY_S):
            for process in self._processes():
                try:
                    kind, rss_bytes = kind_of(process.cmdline()), process.memory_info().rss
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
                if kind is not None:
                    self.peaks[kind] = max(self.peaks.get(kind, 0), rss_bytes)


def largest_worker(peaks: dict[str, int]) -> int | None:
    """Bytes of the largest process that works; None where none was seen."""
    return max((peaks[kind] for kind in WORKERS if kind in peaks), default=None)
