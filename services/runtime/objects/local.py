"""An object store in a local folder: one file per object, atomic and crash-safe writes.

Unfinished writes and the locks live in a hidden folder below the root, made by the first write: a store that is only
read never changes its folder. Conditional writes are exact between all processes that use the same root.
A writer that is stopped in the middle of a write does not keep the others waiting (see `turns`).
"""

import os
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from services.contracts.errors import CallerError, NotFound, SourceUnreadable
from services.runtime.objects import durable, keys
from services.runtime.objects.local_listing import LocalListing, is_inside
from services.runtime.objects.protocol import Folder, ObjectInfo, StoredObject
from services.runtime.objects.turns import Turns, overtaken


def info_of(key: str, found: os.stat_result) -> ObjectInfo:
    """An object's listing entry from its file's status."""
    # The time is ours (see `_stamp`), not the kernel's, whose tick is several ms: two writes never share it.
    etag = f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"
    return ObjectInfo(key, found.st_size, etag, datetime.fromtimestamp(found.st_mtime, UTC))


class LocalStore:
    """`ObjectStore` over a folder. Symbolic links are followed within the root and refused beyond it.

    A name cannot be an object and a folder at once, and is limited to 255 bytes; `CallerError` says so. A missing
    root reads as empty objects (`NotFound`), cannot be listed (`SourceUnreadable`), and is made by the first write.
    """

    def __init__(self, root: Path) -> None:
        self._uri = Path(os.path.abspath(root)).as_uri()
        self._root = Path(os.path.realpath(root))
        self._own = self._root / keys.RESERVED_SEGMENT
        self._unfinished = self._own / "unfinished"
        self._locks = self._own / "locks"
        self._turns = Turns(self._locks)
        durable.remove_stale_files(self._unfinished)

    def __repr__(self) -> str:
        return f"LocalStore({self._uri!r})"

    def __reduce__(self) -> tuple[type["LocalStore"], tuple[Path]]:
        return (LocalStore, (self._root,))

    @property
    def uri(self) -> str:
        """Where the store is rooted, without a trailing slash."""
        return self._uri

    # --- reading ---

    def get(self, key: str) -> bytes:
        """The whole object. Raises `NotFound`, `SourceUnreadable`."""
        return self.get_with_etag(key).data

    def get_with_etag(self, key: str) -> StoredObject:
        """The whole object and its etag. Raises `NotFound`, `SourceUnreadable`."""
        with self._open(key) as (file, found):
            return StoredObject(file.read(), info_of(key, found).etag)

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes:
        """`size_bytes` bytes from `start`, fewer at the end. Raises `NotFound`, `SourceUnreadable`."""
        if start < 0 or size_bytes < 0:
            raise ValueError(f"start {start} and size {size_bytes} must not be negative")
        with self._open(key) as (file, _):
            file.seek(start)
            return file.read(size_bytes)

    def head(self, key: str) -> ObjectInfo | None:
        """The object's listing entry, or None. Raises `SourceUnreadable`."""
        path = self._readable_path(key)
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise durable.explain(error, f"reading {self._name(key)}") from error
        return info_of(key, found) if stat.S_ISREG(found.st_mode) else None

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        """All objects below the prefix, in key order, lazily: one folder's names are held at a time per level."""
        keys.check_prefix(prefix)
        self._check_root()
        return LocalListing(self._root, info_of).walk(prefix, start_after)

    def list_folder(self, prefix: str, *, max_objects: int | None = None) -> Folder:
        """One level below the prefix. Empty folders count as folders. Raises `SourceUnreadable`."""
        keys.check_folder_prefix(prefix)
        self._check_root()
        return LocalListing(self._root, info_of).level(prefix, max_objects)

    # --- writing ---

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo | None:
        """Writes the object whole or not at all; durable on return. None when the condition did not hold."""
        if if_absent and if_match is not None:
            raise ValueError("if_absent and if_match exclude each other")

        def fill(file: BinaryIO) -> None:
            with durable.explained(f"writing {self._name(key)}"):
                file.write(data)

        return self._write(key, fill, if_absent=if_absent, if_match=if_match)

    def put_stream(self, key: str, stream: BinaryIO, size_bytes: int | None = None) -> ObjectInfo:
        """Writes a stream whole or not at all. Raises `CallerError` when it is not `size_bytes` long."""

        def fill(file: BinaryIO) -> None:
            copied = durable.copy_stream(stream, file, f"writing {self._name(key)}")
            if size_bytes is not None and copied != size_bytes:
                raise CallerError(f"{key!r} was announced with {size_bytes} bytes and had {copied}: send it again")

        written = self._write(key, fill, if_absent=False, if_match=None)
        assert written is not None  # noqa: S101 - unconditional
        return written

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes objects, and the folders that this leaves empty; those that do not exist are no error."""
        for key in keys:
            self._delete(key)

    def presign_put(self, key: str, expires_s: int) -> str | None:
        """None: a folder takes no uploads by itself."""
        return None

    # --- inside ---

    def _name(self, key: str) -> str:
        return f"{self._uri}/{key}"

    def _check_root(self) -> None:
        if not self._root.is_dir():
            raise SourceUnreadable(f"{self._uri} is not a folder: check the path, or create it")

    def _readable_path(self, key: str) -> Path:
        keys.check_readable_key(key)
        if not _can_exist(key):
            raise NotFound(f"{self._name(key)} does not exist")
        path = self._root / key
        if not is_inside(path, self._root):
            raise SourceUnreadable(f"{self._name(key)} is a symbolic link that leads out of {self._uri}: copy the file")
        return path

    @contextmanager
    def _open(self, key: str) -> Generator[tuple[BinaryIO, os.stat_result]]:
        path = self._readable_path(key)
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for its writer.
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(handle, "rb") as file:
                found = os.fstat(handle)
                if not stat.S_ISREG(found.st_mode):
                    raise NotFound(f"{self._name(key)} is not a file")
                yield file, found
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"{self._name(key)} does not exist") from None
        except OSError as error:
            raise durable.explain(error, f"reading {self._name(key)}") from error

    def _write(
        self, key: str, fill: Callable[[BinaryIO], None], *, if_absent: bool, if_match: str | None
    ) -> ObjectInfo | None:
        keys.check_writable_key(key)
        keys.check_segment_lengths(key)
        target = self._root / key
        if not is_inside(target.parent, self._root):
            raise SourceUnreadable(f"{self._name(key)} lies behind a symbolic link that leads out of {self._uri}")
        if target.is_dir():
            raise CallerError(f"{self._name(key)} is a folder: a local store cannot hold an object of the same name")
        if if_absent and os.path.lexists(target):
            return None  # no need to write what cannot win
        what = f"writing {self._name(key)}"
        with durable.explained(what):
            self._make_own_folders()
        with durable.unfinished_file(self._unfinished, what) as (unfinished, file):
            fill(file)
            with durable.explained(what):
                durable.flush_to_disk(file)
                changed = self._commit(unfinished, file, target, if_absent=if_absent, if_match=if_match)
                if changed is None:
                    return None
                for folder in changed:
                    durable.flush_folder(folder)
                return info_of(key, os.fstat(file.fileno()))

    def _commit(
        self, unfinished: Path, file: BinaryIO, target: Path, *, if_absent: bool, if_match: str | None
    ) -> Sequence[Path] | None:
        """Gives the file its name if the condition holds. Returns the folders to flush, or None."""
        with self._turns.turn(unfinished) as staged:
            try:
                old = target.stat()
            except (FileNotFoundError, NotADirectoryError):
                old = None
            if if_match is not None and (old is None or info_of("", old).etag != if_match):
                return None
            changed = durable.make_folders(target.parent)
            _stamp(file, old)
            try:
                if if_absent:
                    # A hard link fails where the name exists, so there is one winner even where locks do not work.
                    os.link(staged, target)
                else:
                    staged.replace(target)
            except FileExistsError:
                return None
            except FileNotFoundError:
                if staged.exists():
                    raise  # somebody removed the folder
                raise overtaken() from None
        return [target.parent, *changed]

    def _delete(self, key: str) -> None:
        keys.check_readable_key(key)
        target = self._root / key
        if (
            not _can_exist(key)
            or not is_inside(target.parent, self._root)
            or not (target.is_symlink() or target.is_file())
        ):
            return
        try:
            self._make_own_folders()
            with self._turns.turn():
                target.unlink(missing_ok=True)
                remaining = self._remove_empty_folders(target.parent)
            durable.flush_folder(remaining)
        except (NotADirectoryError, IsADirectoryError):
            return  # a folder is not an object
        except OSError as error:
            raise durable.explain(error, f"deleting {self._name(key)}") from error

    def _make_own_folders(self) -> None:
        for needed in (self._unfinished, self._locks):
            for folder in durable.make_folders(needed):
                durable.flush_folder(folder)

    def _remove_empty_folders(self, folder: Path) -> Path:
        """Removes the folder and those above it while they are empty. Returns the first that stays."""
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:
                return folder
            folder = folder.parent
        return folder


def _can_exist(key: str) -> bool:
    """Whether the key can name an object of this store: `a//b` and `a/` would reach a file of another key."""
    segments = key.split("/")
    return "" not in segments and keys.RESERVED_SEGMENT not in segments


def _stamp(file: BinaryIO, old: os.stat_result | None) -> None:
    """Sets the modification time to now, in nanoseconds, and later than that of the file it replaces."""
    now_ns = time.time_ns()
    if old is not None:
        now_ns = max(now_ns, old.st_mtime_ns + 1)
    os.utime(file.fileno(), ns=(now_ns, now_ns))
