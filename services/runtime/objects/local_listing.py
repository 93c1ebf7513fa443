"""Lists a folder tree in the order in which S3 lists keys.

S3 sorts whole keys by their UTF-8 bytes, which is the order of Python's strings. A folder stands where its name
followed by `/` would: `a.txt` (0x2E) < `a/…` (0x2F) < `a0` (0x30).
"""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from services.contracts.errors import SourceUnreadable
from services.runtime.objects import durable
from services.runtime.objects.keys import RESERVED_SEGMENT
from services.runtime.objects.protocol import Folder, ObjectInfo

_log = logging.getLogger(__name__)


def is_inside(path: Path, root: Path) -> bool:
    """Whether the path, with all symbolic links resolved, is the root or below it. `root` has no links."""
    return Path(os.path.realpath(path)).is_relative_to(root)


@dataclass(frozen=True, slots=True)
class LocalListing:
    """Walks below `root`. Keys are relative to it.

    Symbolic links within the root are followed. One that leads out of the root, to nowhere or into a circle is listed
    as an object, so that a reader of it gets an error that names it, and is not followed. Names that are not valid
    UTF-8 cannot be keys: they are left out with a warning. Files and folders that vanish meanwhile are left out.
    """

    root: Path
    inform: Callable[[str, os.stat_result], ObjectInfo]

    def walk(self, prefix: str, start_after: str | None) -> Iterator[ObjectInfo]:
        """Objects whose keys start with `prefix`, those after `start_after`, in key order."""
        folder_key, _, name_prefix = prefix.rpartition("/")
        if "//" not in prefix:
            yield from self._walk(f"{folder_key}/" if folder_key else "", name_prefix, start_after or "", ())

    def level(self, prefix: str, max_objects: int | None) -> Folder:
        """The folders and objects directly below `prefix`."""
        folders: list[str] = []
        objects: list[ObjectInfo] = []
        for name in self._names(prefix, ()) if "//" not in prefix else ():
            if name.endswith("/"):
                folders.append(name[:-1])
            elif max_objects is None or len(objects) < max_objects:
                objects.extend(self._object(prefix + name))
        return Folder(sorted(folders), objects)

    def _walk(
        self, folder_key: str, name_prefix: str, start_after: str, above: tuple[str, ...]
    ) -> Iterator[ObjectInfo]:
        here = (*above, os.path.realpath(self.root / folder_key))
        for name in self._names(folder_key, here):
            key = folder_key + name
            if not name.startswith(name_prefix):
                continue
            if not name.endswith("/"):
                if key > start_after:
                    yield from self._object(key)
            elif key > start_after or start_after.startswith(key):
                yield from self._walk(key, "", start_after, here)

    def _names(self, folder_key: str, above: tuple[str, ...]) -> list[str]:
        """The folder's entries in key order, folders with a `/` at the end. `above` tells circles of links."""
        folder = self.root / folder_key
        if not is_inside(folder, self.root):
            raise SourceUnreadable(f"{folder} is a symbolic link that leads out of {self.root}: copy the files")
        try:
            with os.scandir(folder) as entries:
                return sorted(name for entry in entries if (name := self._name(entry, above)) is not None)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise durable.explain(error, f"listing {folder}") from error

    def _name(self, entry: os.DirEntry[str], above: tuple[str, ...]) -> str | None:
        """The entry's name, with a `/` at the end if the walk goes into it, or None if it is not listed."""
        if entry.name == RESERVED_SEGMENT:
            return None
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            _log.warning("left out of the listing, its name is not valid UTF-8: %r", entry.path)
            return None
        if not entry.is_symlink():
            if entry.is_dir():
                return f"{entry.name}/"
            return entry.name if entry.is_file() else None
        target = Path(os.path.realpath(entry.path))
        followed = target.is_dir() and target.is_relative_to(self.root) and str(target) not in above
        return f"{entry.name}/" if followed else entry.name

    def _object(self, key: str) -> Iterator[ObjectInfo]:
        path = self.root / key
        try:
            found = path.stat() if is_inside(path, self.root) else path.lstat()
        except FileNotFoundError:
            if not path.is_symlink():
                return
            found = path.lstat()
        except OSError as error:
            if not path.is_symlink():
                raise durable.explain(error, f"listing {path}") from error
            found = path.lstat()
        yield self.inform(key, found)
