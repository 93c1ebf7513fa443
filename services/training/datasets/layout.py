"""What a dataset's folders say, from listings alone: cheap enough to answer a registration with.

Reads the names by the same rules as preflight does: one folder per class at the root, or in each of the split folders;
files at any depth below a class folder belong to it; names compare in Unicode NFC; hidden names do not count.
"""

import unicodedata
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import PurePosixPath

from services.contracts.datasets import IMAGE_SUFFIXES, SPLIT_FOLDERS, DatasetLayout, Split
from services.contracts.errors import CallerError, ClassTooSmall, DatasetEmpty, DatasetTooFewClasses
from services.runtime.objects import ObjectStore

FILES_PER_CLASS = 1000
"""Files looked at in one class folder; where there are more, the dataset's image count is unknown."""
MAX_CLASSES = 10_000
LISTING_THREADS = 8
MIN_CLASSES = 2

_HIDDEN_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
_EXPECTED = "expected one folder per class, <class>/<image>, or <split>/<class>/<image> with train, val and test"


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not looked at."""
    return name.startswith(".") or name.lower() in _HIDDEN_NAMES


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def name_splits(folders: list[str]) -> dict[str, Split] | None:
    """Each top-level folder's split, or None where top-level folders are classes."""
    splits = {folder: SPLIT_FOLDERS.get(folder.lower()) for folder in folders}
    named = {folder: split for folder, split in splits.items() if split is not None}
    return named if len(named) == len(folders) and Split.TRAIN in named.values() else None


def read_layout(store: ObjectStore, root: str = "") -> DatasetLayout:
    """The layout of the dataset below `root`, a prefix that is empty or ends in `/`.

    Blocks; two requests and one more per class folder.

    Raises:
        SourceUnreadable: no such bucket, or the credentials do not open it.
        DatasetEmpty, DatasetTooFewClasses, ClassTooSmall: it could not be trained on.
    """
    uri = f"{store.uri}/{root}"
    top = store.list_folder(root, max_objects=FILES_PER_CLASS)
    folders = [name for name in top.folders if not is_hidden(name)]
    if not folders:
        lying = any(is_image(each.key) for each in top.objects)
        found = "images lie at the root, in no class folder" if lying else "no folders and no images are there"
        raise DatasetEmpty(f"{uri}: {found}; {_EXPECTED}", {"uri": uri})
    splits = name_splits(folders)
    class_folders = _class_folders(store, root, folders, splits)
    counts = _count(store, [prefix for prefix, _, _ in class_folders])
    images: dict[Split, dict[str, int]] = {}
    for (_, split, label), count in zip(class_folders, counts, strict=True):
        if count:
            of_split = images.setdefault(split, {})
            of_split[label] = of_split.get(label, 0) + count
    _check(uri, images)
    capped = any(count >= FILES_PER_CLASS for count in counts)
    return DatasetLayout(
        splits=[split for split in Split if split in images],
        classes=sorted({label for of_split in images.values() for label in of_split}),
        image_count=None if capped else sum(counts),
    )


def _class_folders(
    store: ObjectStore, root: str, folders: list[str], splits: dict[str, Split] | None
) -> list[tuple[str, Split, str]]:
    """Prefix, split and label of every class folder."""
    if splits is None:
        found = [(f"{root}{folder}/", Split.TRAIN, unicodedata.normalize("NFC", folder)) for folder in folders]
    else:
        found = [
            (f"{root}{folder}/{name}/", split, unicodedata.normalize("NFC", name))
            for folder, split in splits.items()
            for name in store.list_folder(f"{root}{folder}/", max_objects=FILES_PER_CLASS).folders
            if not is_hidden(name)
        ]
    if len(found) > MAX_CLASSES:
        raise CallerError(f"{store.uri}/{root} has {len(found)} class folders, more than {MAX_CLASSES}; {_EXPECTED}")
    return found


def _count(store: ObjectStore, prefixes: list[str]) -> list[int]:
    """Images in each folder, of the first `FILES_PER_CLASS` files."""

    def count(prefix: str) -> int:
        total = 0
        for info in islice(store.list(prefix), FILES_PER_CLASS):
            parts = info.key.removeprefix(prefix).split("/")
            if info.size_bytes > 0 and is_image(parts[-1]) and not any(is_hidden(part) for part in parts):
                total += 1
        return total

    with ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="layout") as threads:
        return list(threads.map(count, prefixes))


def _check(uri: str, images: dict[Split, dict[str, int]]) -> None:
    train = images.get(Split.TRAIN, {})
    if not train:
        raise DatasetEmpty(f"{uri} has folders, but no images to train on in them; {_EXPECTED}", {"uri": uri})
    if len(train) < MIN_CLASSES:
        only = next(iter(train))
        raise DatasetTooFewClasses(
            f"{uri} has one class only, {only!r}: a classifier needs {MIN_CLASSES} or more; {_EXPECTED}",
            {"classes": [*train]},
        )
    if Split.VALIDATION in images:
        return
    small = sorted(label for label, count in train.items() if count == 1)
    if small:
        shown = ", ".join(repr(label) for label in small[:5])
        raise ClassTooSmall(
            f"{uri} has one image only of {shown}: a class needs one to train on and one to validate with",
            {"classes": [*small]},
        )
