"""What becomes of each file: labels, or a reason; and what serving would have answered."""

import hashlib
from pathlib import Path

import pytest

from ray_cluster.predict.labelling import Labeller, ShardResult, label_shard
from ray_cluster.predict.snapshot import Shard
from ray_cluster.serve.classifier import Answer, Classifier, Question
from ray_cluster.train.read_ahead import Wanted
from ray_cluster.vision import images
from services.contracts import names
from services.contracts.datasets import QuarantineReason
from services.contracts.errors import ObjectStoreUnavailable
from services.runtime.objects import ObjectStore, open_store
from tests.unit.predict.predictions import BY_COLOUR, COLOURS, JOB, SIZE, MeanColour, labeller, picture, write
from tests.unit.train.stores import FaultyStore


def shard_of(source: ObjectStore) -> Shard:
    return Shard(0, tuple(Wanted(info.key, info.size_bytes) for info in source.list("")))


def test_images_are_labelled_as_serving_labels_them(tmp_path: Path) -> None:
    files = {f"{colour}.png": picture(colour) for colour in COLOURS}
    source = write(tmp_path, files)
    result = labeller().label_shard(source, shard_of(source), top_k=2)
    assert [image.path for image in result.labelled] == sorted(files)
    served = Classifier([MeanColour()], SIZE)
    for image in result.labelled:
        (answer,) = served.answer([Question(files[image.path], BY_COLOUR, 2)])
        assert isinstance(answer, Answer)
        assert answer.predictions == image.predictions
        assert image.predictions[0].label == image.path.removesuffix(".png")
        assert len(image.predictions) == 2
        assert image.sha256 == hashlib.sha256(files[image.path]).hexdigest()


def test_files_that_cannot_be_used_are_set_aside_with_the_reason_and_hold_up_nothing(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        {
            "a.png": picture("red"),
            "cut.png": picture("red")[:40],
            "empty.png": b"",
            "notes.txt": b"hello",
            "text.jpg": b"hello",
            "z.png": picture("blue"),
        },
    )
    result = labeller().label_shard(source, shard_of(source), top_k=1)
    assert [image.path for image in result.labelled] == ["a.png", "z.png"]
    assert {file.path: file.reason for file in result.quarantined} == {
        "cut.png": QuarantineReason.CORRUPT,
        "empty.png": QuarantineReason.ZERO_BYTES,
        "notes.txt": QuarantineReason.NOT_AN_IMAGE,
        "text.jpg": QuarantineReason.NOT_AN_IMAGE,
    }
    assert all(file.message for file in result.quarantined)


def test_a_file_that_is_gone_or_has_an_impossible_name_or_is_too_large_is_set_aside(tmp_path: Path) -> None:
    source = write(tmp_path, {"here.png": picture("green")})
    listed = (
        Wanted("../up.png", 9),
        Wanted("gone.png", 9),
        Wanted("here.png", 9),
        Wanted("huge.png", images.MAX_BYTES + 1),
    )
    result = labeller().label_shard(source, Shard(0, listed), top_k=1)
    assert [image.path for image in result.labelled] == ["here.png"]
    assert {file.path: file.reason for file in result.quarantined} == {
        "../up.png": QuarantineReason.UNREADABLE,
        "gone.png": QuarantineReason.UNREADABLE,
        "huge.png": QuarantineReason.TOO_LARGE,
    }


class NoAnswer(FaultyStore):
    """A source that cannot be reached."""

    def get(self, key: str) -> bytes:
        raise ObjectStoreUnavailable(f"no answer for {key}")


def test_a_source_that_does_not_answer_is_no_fault_of_the_files(tmp_path: Path) -> None:
    source = write(tmp_path, {"a.png": picture("red")})
    with pytest.raises(ObjectStoreUnavailable):
        labeller().label_shard(NoAnswer(source), shard_of(source), top_k=1)


def test_a_shards_result_is_written_once(tmp_path: Path) -> None:
    """Also when another copy of the task was at it at the same time and the file has changed since."""
    store = open_store((tmp_path / "bucket").as_uri())
    source = write(tmp_path / "source", {"a.png": picture("red")})
    key = names.prediction_shard(JOB, 0)

    class Interrupted(Labeller):
        """While it labels, the straggler's twin is done, on what the file was before."""

        def label_shard(self, source: ObjectStore, shard: Shard, top_k: int) -> ShardResult:
            twin = labeller().label_shard(source, shard, top_k)
            assert store.put(key, twin.model_dump_json().encode(), if_absent=True)
            write(tmp_path / "source", {"a.png": picture("blue")})
            return super().label_shard(source, shard, top_k)

    interrupted = Interrupted(Classifier([MeanColour()], SIZE), BY_COLOUR)
    for _ in range(2):
        label_shard(store, source, JOB, shard_of(source), 1, lambda: interrupted)
    (image,) = ShardResult.model_validate_json(store.get(key)).labelled
    assert image.predictions[0].label == "red"
