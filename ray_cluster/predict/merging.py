"""From the shards' results to the files that a user reads: in order, each file once, in bounded memory.

A pure function of the snapshot and the shards, all of which are written once: merging again gives the same bytes.
"""

import csv
import hashlib
import io
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO

from pydantic import ValidationError

from ray_cluster.predict import snapshot as snapshots
from ray_cluster.predict.labelling import ShardResult
from ray_cluster.predict.snapshot import Shard, Snapshot
from ray_cluster.train.read_ahead import Wanted, read_ahead
from services.contracts import names
from services.contracts.base import ObjectRef
from services.contracts.batch_predictions import (
    PREDICTIONS_CSV,
    PREDICTIONS_JSONL,
    QUARANTINE_CSV,
    QUARANTINE_JSONL,
    LabelCount,
    LabelledImage,
)
from services.contracts.datasets import QuarantinedFile
from services.contracts.errors import CorruptObject, InternalError
from services.contracts.ids import JobId
from services.runtime.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class Merged:
    """The results, as they are in the bucket."""

    image_count: int
    quarantined_count: int
    first_quarantined: QuarantinedFile | None
    labels: list[LabelCount]
    predictions_jsonl: ObjectRef
    predictions_csv: ObjectRef
    quarantine_jsonl: ObjectRef
    quarantine_csv: ObjectRef


def merge(store: ObjectStore, job_id: JobId, snapshot: Snapshot, labels: Sequence[str], top_k: int) -> Merged:
    """Writes the four files. `labels` are the model's.

    Raises:
        InternalError: a shard is missing.
        CorruptObject: a shard's result is damaged, or is not about the shard's files.
    """
    first: QuarantinedFile | None = None
    counts: Counter[int] = Counter()
    quarantined_count = 0
    with ExitStack() as stack:
        lines, table, bad_lines, bad_table = (_Output(stack.enter_context(tempfile.TemporaryFile())) for _ in range(4))
        table.write(csv_header(min(top_k, len(labels))))
        bad_table.write(csv_line(["path", "reason", "message"]))
        for result in _results(store, job_id, snapshot):
            for image in result.labelled:
                counts[image.predictions[0].index] += 1
                lines.write(f"{image.model_dump_json()}\n")
                table.write(csv_row(image))
            for file in result.quarantined:
                first = first or file
                quarantined_count += 1
                bad_lines.write(f"{file.model_dump_json()}\n")
                bad_table.write(csv_line([file.path, file.reason.value, file.message]))
        return Merged(
            image_count=counts.total(),
            quarantined_count=quarantined_count,
            first_quarantined=first,
            labels=[LabelCount(label=labels[index], count=count) for index, count in sorted(counts.items())],
            predictions_jsonl=lines.store(store, names.prediction_file(job_id, PREDICTIONS_JSONL)),
            predictions_csv=table.store(store, names.prediction_file(job_id, PREDICTIONS_CSV)),
            quarantine_jsonl=bad_lines.store(store, names.prediction_file(job_id, QUARANTINE_JSONL)),
            quarantine_csv=bad_table.store(store, names.prediction_file(job_id, QUARANTINE_CSV)),
        )


def csv_header(columns: int) -> str:
    """`path,label_1,probability_1,…` for so many labels per image."""
    ranks = range(1, columns + 1)
    return csv_line(["path", *(f"{name}_{rank}" for rank in ranks for name in ("label", "probability"))])


def csv_row(image: LabelledImage) -> str:
    """One image."""
    pairs = ((each.label, each.probability) for each in image.predictions)
    return csv_line([image.path, *(cell for pair in pairs for cell in pair)])


def csv_line(cells: Sequence[object]) -> str:
    """Cells quoted as RFC 4180 says; lines end in a line feed alone."""
    line = io.StringIO()
    csv.writer(line).writerow(cells)  # with its own "\r\n", so that cells with either of the two are quoted
    return line.getvalue().removesuffix("\r\n") + "\n"


def _results(store: ObjectStore, job_id: JobId, snapshot: Snapshot) -> Iterator[ShardResult]:
    """Of all shards in order."""
    listed = list(store.list(names.prediction_shards(job_id)))
    if [info.key for info in listed] != [names.prediction_shard(job_id, n) for n in range(snapshot.shard_count)]:
        raise InternalError(f"{len(listed)} of {snapshot.shard_count} shards of {job_id} have a result")
    contents = read_ahead(store.get, [Wanted(info.key, info.size_bytes) for info in listed])
    for shard, info, content in zip(snapshots.read_shards(store, job_id, snapshot), listed, contents, strict=True):
        yield _parse(content.result(), info.key, shard)


def _parse(data: bytes, key: str, shard: Shard) -> ShardResult:
    try:
        result = ShardResult.model_validate_json(data)
    except ValidationError as error:
        raise CorruptObject(f"{key} cannot be read: {error.errors(include_url=False)[0]['msg']}") from error
    paths = sorted([image.path for image in result.labelled] + [file.path for file in result.quarantined])
    if paths != sorted(file.key for file in shard.files):
        raise CorruptObject(f"{key} is not about the {len(shard.files)} files of shard {shard.number}")
    return result


class _Output:
    """A file that grows line by line, on disk, and is then stored."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def write(self, line: str) -> None:
        data = line.encode()
        self._file.write(data)
        self._digest.update(data)
        self._size_bytes += len(data)

    def store(self, store: ObjectStore, key: str) -> ObjectRef:
        self._file.seek(0)
        store.put_stream(key, self._file, self._size_bytes)
        return ObjectRef(key=key, sha256=self._digest.hexdigest(), size_bytes=self._size_bytes)
