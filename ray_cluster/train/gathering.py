"""Processes of one machine that wait for each other."""

import time
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

_LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Gathering:
    """Of `count` processes, in a folder of their own that is empty at first."""

    folder: Path
    count: int
    within_s: float
    """After that they go on without those that have not come."""

    def gather(self) -> bool:
        """Returns when all are there; False where some did not come in time."""
        deadline_s = time.monotonic() + self.within_s
        (self.folder / uuid4().hex).touch()
        while sum(1 for _ in self.folder.iterdir()) < self.count:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_LOOK_S)
        return True
