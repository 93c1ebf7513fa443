"""Writers of a local store take turns, and one that was stopped in the middle of its turn is overtaken.

A plain file lock keeps the others waiting for as long as its holder is stopped, e.g. by SIGSTOP or in a debugger. So
locks are numbered files, and the newest counts. Who has waited too long for one adds the next, and whoever has that one
first takes away what holders of older ones were about to commit. Committing is one rename of that very file, so who
wakes up later fails instead of undoing what happened since.
"""

import errno
import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from services.contracts.errors import ObjectStoreUnavailable

OVERTAKE_AFTER_S = 5.0
"""A turn is one rename, so a holder that takes longer was stopped; if it was only slow, it has to write again."""

TIMEOUT_S = 30.0
"""How long a writer waits while others have their turns."""

_POLL_S = 0.002
_MAX_POLL_S = 0.05
_STAGED = ".staged"


class Turns:
    """The turns of one store, among all threads and processes that use the same folder."""

    def __init__(self, folder: Path) -> None:
        """`folder` is for the locks alone; it must exist before a turn is taken."""
        self._folder = folder

    @contextmanager
    def turn(self, unfinished: Path | None = None) -> Generator[Path]:
        """Waits for a turn and holds it.

        Gives the path under which the file `unfinished` is to be found from now on: link it or rename it to where it
        belongs. `FileNotFoundError` from that means that the turn is over; call `overtaken` for what to raise. What
        was left under this path is removed at the end. Without a file there is nothing that overtaking takes away:
        do what may also happen late.

        Raises:
            ObjectStoreUnavailable: the turn did not come within `TIMEOUT_S`, or was over before it began.
        """
        number, handle = self._acquire()
        staged = self._folder / f"{number}{_STAGED}"
        try:
            if unfinished is not None:
                unfinished.replace(staged)
                # Who overtakes from here on finds the file and removes it.
                if self._newest() != number:
                    raise overtaken()
            try:
                yield staged
            finally:
                staged.unlink(missing_ok=True)
        finally:
            os.close(handle)

    def _acquire(self) -> tuple[int, int]:
        """The newest lock's number and its file, locked."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            number = self._newest()
            handle = self._open(number)
            try:
                locked = self._lock(handle, deadline)
                if locked and self._newest() == number:
                    os.utime(handle)  # tells those who wait that turns go on
                    self._remove_older(number)
                    return number, handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)
            if not locked:
                os.close(self._open(number + 1))

    def _lock(self, handle: int, deadline: float) -> bool:
        """False: nobody but the holder has had a turn for so long that it is to be overtaken."""
        since, last_turn_ns = time.monotonic(), os.fstat(handle).st_mtime_ns
        pause_s = _POLL_S
        while True:
            try:
                # flock and not lockf: it belongs to the open file, so it also excludes threads of the same process.
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                return True
            now, turn_ns = time.monotonic(), os.fstat(handle).st_mtime_ns
            if turn_ns != last_turn_ns:
                since, last_turn_ns = now, turn_ns
            elif now - since > OVERTAKE_AFTER_S:
                return False
            if now > deadline:
                raise ObjectStoreUnavailable(f"others have been writing below {self._folder} for {TIMEOUT_S:.0f} s")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _MAX_POLL_S)

    def _newest(self) -> int:
        """Never falls: the newest lock is never removed."""
        return max((number for number, _ in self._files()), default=1)

    def _files(self) -> list[tuple[int, str]]:
        """Numbers and names of locks and of what is staged under them."""
        found = ((name.removesuffix(_STAGED), name) for name in os.listdir(self._folder))
        return [(int(number), name) for number, name in found if number.isdecimal()]

    def _open(self, number: int) -> int:
        return os.open(self._folder / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _remove_older(self, number: int) -> None:
        """Takes away what holders of older locks were about to commit, and their locks."""
        for older, name in sorted(self._files(), key=lambda file: not file[1].endswith(_STAGED)):
            if older < number:
                (self._folder / name).unlink(missing_ok=True)


def overtaken() -> OSError:
    """What a writer raises whose turn ended before it had committed: nothing was written."""
    return OSError(errno.ETIMEDOUT, "this process was stopped for so long that another writer went ahead: write again")
