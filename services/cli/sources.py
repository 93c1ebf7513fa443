"""What a person types where images are meant: a folder, a URI, a dataset's id or its name."""

import re
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from services.client import Rekindle
from services.contracts.batch_predictions import DatasetFiles, ImageSource
from services.contracts.datasets import Dataset, PrefixSource
from services.contracts.errors import NotFound
from services.contracts.ids import DatasetId

MAX_NAME_CHARACTERS = 64
_URI = re.compile(r"(s3|file)://")
_DATASET_ID = re.compile(r"ds_[0-9a-f]{24}")


def resource_name(text: str) -> str:
    """A name that the server accepts, as close to the text as can be; `dataset` where nothing of it can stay."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:MAX_NAME_CHARACTERS].strip("-._")
    return name or "dataset"


def name_of(source: str) -> str:
    """The name of a dataset that is made from a folder or URI: its last part."""
    if _URI.match(source):
        return resource_name(source.rstrip("/").rpartition("/")[2])
    return resource_name(Path(source).resolve().name)


def is_uri(source: str) -> bool:
    """Whether it names a place that the server reads by itself."""
    return _URI.match(source) is not None


def add_dataset(client: Rekindle, source: str, name: str | None, *, in_place: bool, console: Console) -> Dataset:
    """Registers a URI, or uploads a folder; with `in_place` the server reads the folder where it is.

    Raises:
        OSError: the folder or a file in it cannot be read.
    """
    name = name or name_of(source)
    if is_uri(source):
        return client.datasets.create_from_prefix(name, source)
    folder = Path(source).expanduser()
    if in_place:
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder")
        return client.datasets.create_from_prefix(name, folder.resolve().as_uri())
    columns = (TextColumn("Uploading"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("upload", total=None)
        uploaded = client.datasets.upload_folder(
            name, folder, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    console.print(f"uploaded {uploaded.file_count} files from {folder}", markup=False)
    for path in uploaded.skipped:
        console.print(f"left out {path}: it lies in no class's folder", markup=False)
    return uploaded.dataset


def find_or_add_dataset(client: Rekindle, source: str, *, in_place: bool, console: Console) -> Dataset:
    """The dataset with that id or name, else a new one from the folder or URI.

    Raises:
        NotFound: it is none of these.
    """
    if _DATASET_ID.fullmatch(source):
        return client.datasets.get(source)
    if is_uri(source) or Path(source).expanduser().is_dir():
        return add_dataset(client, source, None, in_place=in_place, console=console)
    return _dataset_named(client, source)


def find_images(client: Rekindle, source: str) -> ImageSource:
    """Where the images are: a URI, a folder, which the server reads where it is, or a dataset's id or name.

    Raises:
        NotFound: it is none of these.
    """
    if _DATASET_ID.fullmatch(source):
        return DatasetFiles(dataset_id=DatasetId(source))
    if is_uri(source):
        return PrefixSource(uri=source)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return PrefixSource(uri=folder.resolve().as_uri())
    return DatasetFiles(dataset_id=_dataset_named(client, source).id)


def _dataset_named(client: Rekindle, name: str) -> Dataset:
    """The newest of the name. Raises `NotFound`."""
    if resource_name(name) == name:
        for dataset in client.datasets.list(name=name):
            return dataset
    raise NotFound(f"{name!r} is no folder, no s3:// URI, and no dataset's id or name (see `rekindle datasets list`)")
