"""An attempt of a batch prediction whose shards are done: what it makes of them, and what it must not."""

from dataclasses import replace
from pathlib import Path

import pytest

from ray_cluster.predict.prediction import find_result, predict
from ray_cluster.train.context import AttemptContext
from services.contracts import names
from services.contracts.batch_predictions import LabelCount
from services.contracts.errors import Fenced, NotFound, ObjectStoreUnavailable, SourceEmpty
from services.contracts.jobs import Fence, JobEventType, ProgressRecord, Stage, StageTiming
from services.runtime.objects import ObjectStore, open_store
from tests.unit.predict.predictions import JOB, context_of, label_all, picture, take, write
from tests.unit.train.stores import FaultyStore

FILES = {"1.png": picture("red"), "2.png": picture("blue"), "3.png": picture("red"), "notes.txt": b"hello"}


@pytest.fixture
def source(tmp_path: Path) -> ObjectStore:
    return write(tmp_path / "source", FILES)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store((tmp_path / "bucket").as_uri())


@pytest.fixture
def context(store: ObjectStore, source: ObjectStore) -> AttemptContext:
    """Of an attempt that finds every shard labelled."""
    label_all(store, source, take(store, source, 2))
    return context_of(store, source)


def reports(context: AttemptContext, kind: JobEventType) -> list[ProgressRecord]:
    prefix = names.attempt_progress_prefix(JOB, context.attempt)
    read = [ProgressRecord.model_validate_json(context.store.get(info.key)) for info in context.store.list(prefix)]
    return [record for record in read if record.type is kind]


def test_the_result_says_what_there_is(context: AttemptContext, source: ObjectStore) -> None:
    result = predict(context)
    assert find_result(context.store, JOB) == result
    assert (result.model_name, result.version, result.source_uri) == ("colours", 1, source.uri)
    assert (result.file_count, result.image_count, result.quarantined_count) == (4, 3, 1)
    assert result.labels == [LabelCount(label="red", count=2), LabelCount(label="blue", count=1)]
    assert all(context.store.head(ref.key) for ref in result.files)


def test_what_it_does_is_told(context: AttemptContext) -> None:
    predict(context)
    timings = [StageTiming.model_validate(record.data) for record in reports(context, JobEventType.STAGE)]
    ended = {timing.stage: timing.skipped for timing in timings if timing.finished_at is not None}
    assert ended == {Stage.LIST: True, Stage.PREDICT: True, Stage.MERGE: False}
    (progress,) = reports(context, JobEventType.PROGRESS)
    assert (progress.data["done"], progress.data["total"]) == (4, 4)
    (warning,) = reports(context, JobEventType.WARNING)
    assert "1 file(s) were set aside, the first: notes.txt" in warning.message


def test_an_attempt_that_was_given_up_makes_nothing_visible(context: AttemptContext) -> None:
    context.store.put(names.job_fence(JOB), Fence(attempt=2).model_dump_json().encode())
    with pytest.raises(Fenced):
        predict(context)
    assert find_result(context.store, JOB) is None
    assert context.store.head(names.prediction_file(JOB, "predictions.jsonl")) is None


def test_what_is_finished_is_not_done_again(context: AttemptContext, source: ObjectStore) -> None:
    result = predict(context)
    context.store.delete([info.key for info in context.store.list(names.prediction_shards(JOB))])
    source.delete(FILES)
    assert predict(context_of(context.store, source, attempt=2)) == result


def test_of_two_that_finish_at_a_time_the_first_ones_result_stands(context: AttemptContext) -> None:
    """The second is stopped right before its last write, and the first ends meanwhile."""
    store = context.store

    class Stopped(FaultyStore):
        def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> object:
            if key == names.prediction_result(JOB):
                self.other = predict(context)
            return super().put(key, data, if_absent=if_absent, if_match=if_match)

    stopped = Stopped(store)
    result = predict(replace(context, store=stopped))
    assert result == stopped.other == find_result(store, JOB)
    assert result.finished_at == stopped.other.finished_at


def test_the_result_is_there_only_when_all_its_files_are(context: AttemptContext) -> None:
    dying = FaultyStore(context.store, lambda key: key == names.prediction_result(JOB))
    with pytest.raises(ObjectStoreUnavailable):
        predict(replace(context, store=dying))
    assert find_result(context.store, JOB) is None
    written = {key: context.store.get(key) for key in (ref.key for ref in predict(context).files)}
    assert all(written.values())


def test_a_version_that_is_gone_is_named(store: ObjectStore, source: ObjectStore) -> None:
    with pytest.raises(NotFound, match="model 'colours' has no version 7"):
        predict(context_of(store, source, version=7))


def test_an_empty_source_is_the_users_affair(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(SourceEmpty, match="there are no files at"):
        predict(context_of(store, write(tmp_path / "empty", {".hidden": b"x"})))
