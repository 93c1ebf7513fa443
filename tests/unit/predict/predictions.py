"""A model that tells colours, images of one colour each, and batch predictions of them without Ray."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ray_cluster.predict import snapshot as snapshots
from ray_cluster.predict.labelling import Labeller, ShardResult
from ray_cluster.predict.snapshot import Snapshot
from ray_cluster.serve.classifier import Classifier
from ray_cluster.serve.model_tails import LabelledTail
from ray_cluster.train.capacity import CapacityWatch
from ray_cluster.train.context import AttemptContext
from ray_cluster.train.dispatch import Parallelism
from ray_cluster.train.reporter import Reporter
from ray_cluster.vision.tails import Tail
from services.contracts import names
from services.contracts.base import ObjectRef, utc_now
from services.contracts.batch_predictions import BatchPredictionSpec
from services.contracts.datasets import PrefixSource
from services.contracts.ids import JobId
from services.contracts.jobs import JobKind, JobRecord
from services.contracts.resources import Resources
from services.runtime.objects import ObjectStore, open_store
from tests.servers.published import made_up_trunk, publish

JOB = JobId("pred_" + "0" * 24)
COLOURS = ("red", "green", "blue")
SIZE = 8


class MeanColour:
    """An engine: each image's mean red, green and blue. It wants two images at a time."""

    name = "mean"
    version = "1"
    feature_dim = 3
    batch_size = 2

    def features(self, images_BHWC: np.ndarray) -> np.ndarray:
        return images_BHWC.mean(axis=(1, 2)).astype(np.float32)


TAIL = Tail(np.eye(3, dtype=np.float32) / 64, np.zeros(3, np.float32))
BY_COLOUR = LabelledTail(TAIL, COLOURS)


def labeller() -> Labeller:
    return Labeller(Classifier([MeanColour()], SIZE), BY_COLOUR)


def picture(colour: str, shade: int = 200) -> bytes:
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[..., COLOURS.index(colour)] = shade
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> ObjectStore:
    """A source with these files."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return open_store(folder.as_uri())


def take(store: ObjectStore, source: ObjectStore, shard_files: int) -> Snapshot:
    """A snapshot with small shards."""
    taken = snapshots.take(store, JOB, 1, source.uri, source.list(""))
    small = taken.model_copy(update={"shard_files": shard_files})
    store.put(names.prediction_snapshot(JOB), small.model_dump_json().encode())
    return small


def label_all(store: ObjectStore, source: ObjectStore, snapshot: Snapshot, top_k: int = 2) -> list[ShardResult]:
    """Labels every shard and writes the results."""
    results: list[ShardResult] = []
    for shard in snapshots.read_shards(store, JOB, snapshot):
        result = labeller().label_shard(source, shard, top_k)
        store.put(names.prediction_shard(JOB, shard.number), result.model_dump_json().encode(), if_absent=True)
        results.append(result)
    return results


def context_of(store: ObjectStore, source: ObjectStore, *, version: int = 1, attempt: int = 1) -> AttemptContext:
    """Of an attempt that labels the source with the version 1 of the model `colours`, or with one that is not there."""
    # An artefact that is never read: the tests bring their own engine.
    never_read = {"litert": ObjectRef(key="x", sha256="0" * 64, size_bytes=1)}
    publish(store, made_up_trunk(3).model_copy(update={"artefacts": never_read}), "colours", 1, TAIL, list(COLOURS))
    record = JobRecord(
        job_id=JOB,
        kind=JobKind.PREDICT,
        model_name="colours",
        model_version=version,
        created_at=utc_now(),
        spec=None,
        source_uri=source.uri,
        prediction=BatchPredictionSpec(model_name="colours", source=PrefixSource(uri=source.uri), top_k=2),
    )
    reporter = Reporter(store, JOB, attempt)
    capacity, parallelism = CapacityWatch(Resources(), reporter), Parallelism(1, fixed=1)
    return AttemptContext(store.uri, store, record, attempt, reporter, capacity, parallelism)
