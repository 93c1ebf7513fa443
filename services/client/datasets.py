"""Datasets: registering images that stay where they are, and uploading folders."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import TypeAdapter

from services.client.folders import LocalFile, read_folder
from services.client.transport import Transport
from services.contracts.datasets import (
    Dataset,
    DatasetSource,
    NewDataset,
    PrefixSource,
    PreflightReport,
    UploadSource,
    UploadUrl,
    UploadUrls,
    UploadUrlsRequest,
)
from services.contracts.pages import Page

PARALLEL_UPLOADS = 8
FILES_PER_REQUEST = 500

_DATASET = TypeAdapter(Dataset)
_PAGE = TypeAdapter(Page[Dataset])
_REPORT = TypeAdapter(PreflightReport)
_URLS = TypeAdapter(UploadUrls)

Progress = Callable[[int, int], None]
"""Called with the files uploaded so far and all there are."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """An uploaded folder."""

    dataset: Dataset
    file_count: int
    skipped: list[str]
    """Files that lie in no class's folder, relative to the folder."""


class Datasets:
    """Calls on `/v1/datasets`. All raise `ApiError` and `Unreachable`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create_from_prefix(self, name: str, uri: str) -> Dataset:
        """Registers images that stay where they are: `s3://bucket/prefix/`, or `file:///folder/` where the server
        reads local folders."""
        return self._create(name, PrefixSource(type="prefix", uri=uri))

    def upload_folder(self, name: str, folder: Path | str, *, progress: Progress | None = None) -> Uploaded:
        """Uploads a folder of images, with a folder per class or `train/`, `validation/` and `test/` around those.

        Raises:
            OSError: the folder or a file in it cannot be read.
        """
        content = read_folder(Path(folder))
        dataset = self._create(name, UploadSource(type="upload"))
        done = 0
        for start in range(0, len(content.files), FILES_PER_REQUEST):
            for _ in self._upload(dataset, content.files[start : start + FILES_PER_REQUEST]):
                done += 1
                if progress is not None:
                    progress(done, len(content.files))
        dataset = self._transport.call(_DATASET, "POST", f"/v1/datasets/{dataset.id}/complete")
        return Uploaded(dataset, len(content.files), content.skipped)

    def get(self, dataset_id: str) -> Dataset:
        return self._transport.call(_DATASET, "GET", f"/v1/datasets/{dataset_id}")

    def list(self, *, name: str | None = None) -> Iterator[Dataset]:
        """All datasets, or those with the name, newest first, page by page."""
        cursor: str | None = None
        while True:
            page = self._transport.call(_PAGE, "GET", "/v1/datasets", query={"cursor": cursor, "name": name})
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def report(self, dataset_id: str) -> PreflightReport:
        """What preflight found when a job last looked at the dataset."""
        return self._transport.call(_REPORT, "GET", f"/v1/datasets/{dataset_id}/report")

    def _create(self, name: str, source: DatasetSource) -> Dataset:
        return self._transport.call(_DATASET, "POST", "/v1/datasets", body=NewDataset(name=name, source=source))

    def _upload(self, dataset: Dataset, files: Sequence[LocalFile]) -> Iterator[None]:
        """Sends the files in parallel; yields as each is stored. The first failure is raised and the rest dropped."""
        request = UploadUrlsRequest(paths=[file.path for file in files])
        path = f"/v1/datasets/{dataset.id}"
        urls = self._transport.call(_URLS, "POST", f"{path}/upload-urls", body=request).urls

        def send(file: LocalFile, target: UploadUrl) -> None:
            # The server's own URL may be one that only others can use: what needs the key goes where we know it is.
            self._transport.put_file(f"{path}/files/{quote(file.path)}" if target.needs_key else target.url, file.file)

        with ThreadPoolExecutor(PARALLEL_UPLOADS) as threads:
            try:
                for _ in threads.map(send, files, urls):
                    yield
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
