"""Which files of a local folder make a dataset."""

import os
from dataclasses import dataclass
from pathlib import Path

MIN_SEGMENTS = 2


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to upload."""

    file: Path
    path: str
    """Relative to the dataset's root, with `/`: `<class>/<file>` or `<split>/<class>/<file>`."""


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """What a folder holds."""

    files: list[LocalFile]
    skipped: list[str]
    """Paths of files outside any class's folder. Hidden files and folders are not even named."""


def read_folder(folder: Path) -> LocalFolder:
    """The files below the folder, in order of path. Links to folders are not followed.

    Raises:
        NotADirectoryError: there is no such folder.
        OSError: a part of it cannot be read.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder: name a folder that has a folder of images per class")
    files: list[LocalFile] = []
    skipped: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=_reraise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(parent, name)
            path = file.relative_to(folder).as_posix()
            if name.startswith(".") or not file.is_file():
                continue
            if path.count("/") + 1 < MIN_SEGMENTS:
                skipped.append(path)
            else:
                files.append(LocalFile(file, path))
    return LocalFolder(sorted(files, key=lambda file: file.path), skipped)


def _reraise(error: OSError) -> None:
    raise error
