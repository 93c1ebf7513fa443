"""Writes to a local file system that survive a crash."""

import errno
import os
import secrets
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from services.contracts.errors import CallerError, ObjectStoreUnavailable, RekindleError, SourceUnreadable

STALE_AFTER_S = 3600.0
"""Unfinished files that nobody wrote to for this long were left by a killed writer."""

_COPY_BYTES = 1024 * 1024


@contextmanager
def unfinished_file(folder: Path, what: str) -> Generator[tuple[Path, BinaryIO]]:
    """A new file for writing in `folder`; gone at the end unless it was renamed, whatever happens but a kill."""
    path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
    with explained(what):
        # O_EXCL and the umask's mode; tempfile's 0600 would hide the objects from the other users of the store.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield path, file
    finally:
        path.unlink(missing_ok=True)


def copy_stream(stream: BinaryIO, file: BinaryIO, what: str) -> int:
    """Copies to the stream's end in bounded memory. Returns the number of bytes. The stream's errors pass through."""
    size_bytes = 0
    while chunk := stream.read(_COPY_BYTES):
        with explained(what):
            file.write(chunk)
        size_bytes += len(chunk)
    return size_bytes


def flush_to_disk(file: BinaryIO) -> None:
    """Returns when the file's bytes are on the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Returns when the folder's entries are on the disk. A folder that is gone by now is no error."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folders(folder: Path) -> list[Path]:
    """Makes a folder and those above it. Returns the folders that got a new entry, to be flushed."""
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
        return []
    except FileNotFoundError:
        changed = make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        return [*changed, folder.parent]
    return [folder.parent]


def remove_stale_files(folder: Path) -> None:
    """Removes what killed writers left. Best effort: a folder that cannot be read or written is left alone."""
    oldest_unix_s = time.time() - STALE_AFTER_S
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(found.st_mode) and found.st_mtime < oldest_unix_s:
                Path(entry.path).unlink(missing_ok=True)


@contextmanager
def explained(what: str) -> Generator[None]:
    """Raises the error of ours that an `OSError` inside means."""
    try:
        yield
    except OSError as error:
        raise explain(error, what) from error


def explain(error: OSError, what: str) -> RekindleError:
    """The error of ours that an `OSError` means. `what` says what was tried, e.g. "writing file:///a/b"."""
    reason = error.strerror or str(error)
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return SourceUnreadable(f"{what}: {reason}: check the folder's owner, permissions and mount options")
    if error.errno in {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY}:
        return CallerError(
            f"{what}: a name in the key is a file here and a folder there: a local store cannot hold both"
        )
    if error.errno in {errno.ENAMETOOLONG, errno.EINVAL}:
        return CallerError(f"{what}: {reason}: the file system does not take this name: shorten or simplify it")
    if error.errno in {errno.EOPNOTSUPP, errno.ENOSYS}:
        return CallerError(f"{what}: {reason}: the file system lacks hard links or locks: use another")
    if error.errno == errno.ELOOP:
        return SourceUnreadable(f"{what}: {reason}: its symbolic links go in circles")
    return ObjectStoreUnavailable(f"{what}: {reason}")
