"""From a listing of a dataset's files to who is labelled what, before any image is read."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from services.contracts.datasets import SPLIT_FOLDERS, Split
from services.runtime.objects import ObjectInfo

_HIDDEN_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
_TRAIN_FOLDERS = frozenset(name for name, split in SPLIT_FOLDERS.items() if split is Split.TRAIN)


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file inside a class folder, image or not."""

    path: str
    """Relative to the dataset's root."""
    size_bytes: int
    etag: str
    label: str
    split: Split


@dataclass(frozen=True, slots=True)
class Listing:
    """A dataset before its images are read."""

    files: list[ListedFile]
    """Sorted by path."""
    has_split_folders: bool
    stray_paths: list[str]
    """Files outside any class folder, sorted."""
    ignored_count: int
    """Hidden files and folders; a hidden folder counts once, whatever is in it."""

    def labels(self) -> list[str]:
        """Every class that any split has a folder for, sorted by name."""
        return sorted({file.label for file in self.files})

    def splits(self) -> set[Split]:
        """The splits that any file belongs to."""
        return {file.split for file in self.files}

    def sha256(self) -> str:
        """Changes when a file is added, removed, renamed or rewritten."""
        rows = [[file.path, file.size_bytes, file.etag] for file in self.files]
        rows.append([*self.stray_paths, self.ignored_count])
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def read_listing(infos: Iterable[ObjectInfo]) -> Listing:
    """Sorts a store's listing into classes and splits.

    One folder per class, at any depth below it; or, when every top-level folder names a split and one is `train` or
    `training`, one folder per class in each of those. Labels are normalised to Unicode NFC: the same name typed on
    two systems is one class.
    """
    visible: list[tuple[list[str], ObjectInfo]] = []
    hidden: set[str] = set()
    for info in infos:
        if is_folder_marker(info):
            continue
        hides = hidden_part(info.key)
        if hides is None:
            visible.append((info.key.split("/"), info))
        else:
            hidden.add(hides)
    folders = {parts[0].lower() for parts, _ in visible if len(parts) > 1}
    has_split_folders = bool(folders & _TRAIN_FOLDERS) and folders <= SPLIT_FOLDERS.keys()
    depth = 1 if has_split_folders else 0
    files: list[ListedFile] = []
    strays: list[str] = []
    for parts, info in visible:
        if len(parts) < depth + 2:
            strays.append(info.key)
            continue
        split = SPLIT_FOLDERS[parts[0].lower()] if has_split_folders else Split.TRAIN
        label = unicodedata.normalize("NFC", parts[depth])
        files.append(ListedFile(info.key, info.size_bytes, info.etag, label, split))
    files.sort(key=lambda file: file.path)
    return Listing(files, has_split_folders, sorted(strays), len(hidden))


def is_folder_marker(info: ObjectInfo) -> bool:
    """Some S3 tools write an empty object for each folder."""
    return info.key.endswith("/")


def hidden_part(path: str) -> str | None:
    """The hidden folder that a file lies in, or the file itself where that is hidden; None for a visible one."""
    parts = path.split("/")
    depth = next((depth for depth, part in enumerate(parts) if _is_hidden(part)), None)
    return None if depth is None else "/".join(parts[: depth + 1])


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _HIDDEN_NAMES
