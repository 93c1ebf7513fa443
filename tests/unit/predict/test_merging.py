"""The files that a user reads: in order, each file once, quoted right, and the same bytes whoever merges."""

import csv
import hashlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_cluster.predict.merging import csv_header, csv_line, csv_row, merge
from services.contracts import names
from services.contracts.batch_predictions import LabelledImage
from services.contracts.errors import CorruptObject, InternalError
from services.contracts.predictions import Prediction
from services.runtime.objects import ObjectStore, open_store
from tests.unit.predict.predictions import COLOURS, JOB, label_all, picture, take, write

FILES = {
    **{f"{number:02d}.png": picture(COLOURS[number % 3], 100 + number) for number in range(10)},
    "05-broken.png": b"broken",
    'a "quoted", name.png': picture("red"),
    "notes.txt": b"hello",
    "ünïcode/ß.png": picture("green"),
}


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store((tmp_path / "bucket").as_uri())


@pytest.fixture
def source(tmp_path: Path) -> ObjectStore:
    return write(tmp_path / "source", FILES)


def lines(store: ObjectStore, name: str) -> list[str]:
    return store.get(names.prediction_file(JOB, name)).decode().split("\n")[:-1]


@pytest.mark.parametrize("shard_files", [1, 3, 4, 14, 256])
def test_each_file_is_in_the_results_once_in_order(store: ObjectStore, source: ObjectStore, shard_files: int) -> None:
    snapshot = take(store, source, shard_files)
    label_all(store, source, snapshot)
    merged = merge(store, JOB, snapshot, COLOURS, 2)
    bad = ["05-broken.png", "notes.txt"]
    good = sorted(set(FILES) - set(bad))
    assert [json.loads(line)["path"] for line in lines(store, "predictions.jsonl")] == good
    assert [json.loads(line)["path"] for line in lines(store, "quarantine.jsonl")] == bad
    table = list(csv.reader(io.StringIO(store.get(names.prediction_file(JOB, "predictions.csv")).decode(), newline="")))
    assert table[0] == ["path", "label_1", "probability_1", "label_2", "probability_2"]
    assert [row[0] for row in table[1:]] == good
    assert [row[0] for row in csv.reader(lines(store, "quarantine.csv"))] == ["path", *bad]
    assert (merged.image_count, merged.quarantined_count) == (len(good), 2)
    assert {each.label: each.count for each in merged.labels} == {"red": 5, "green": 4, "blue": 3}
    assert merged.first_quarantined is not None
    assert merged.first_quarantined.path == "05-broken.png"


def test_the_table_says_what_the_lines_say(store: ObjectStore, source: ObjectStore) -> None:
    snapshot = take(store, source, 4)
    label_all(store, source, snapshot)
    merge(store, JOB, snapshot, COLOURS, 2)
    table = csv.DictReader(io.StringIO(store.get(names.prediction_file(JOB, "predictions.csv")).decode(), newline=""))
    for row, line in zip(table, lines(store, "predictions.jsonl"), strict=True):
        image = LabelledImage.model_validate_json(line)
        for rank, prediction in enumerate(image.predictions, 1):
            assert row[f"label_{rank}"] == prediction.label
            assert float(row[f"probability_{rank}"]) == prediction.probability


def test_merging_again_gives_the_same_bytes_which_the_references_name(store: ObjectStore, source: ObjectStore) -> None:
    snapshot = take(store, source, 4)
    label_all(store, source, snapshot)
    first = merge(store, JOB, snapshot, COLOURS, 2)
    assert merge(store, JOB, snapshot, COLOURS, 2) == first
    for ref in (first.predictions_jsonl, first.predictions_csv, first.quarantine_jsonl, first.quarantine_csv):
        data = store.get(ref.key)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (ref.size_bytes, ref.sha256)


def test_the_size_of_the_shards_does_not_show_in_the_results(source: ObjectStore, tmp_path: Path) -> None:
    shas = set()
    for shard_files in (1, 5, 256):
        store = open_store((tmp_path / f"bucket-{shard_files}").as_uri())
        snapshot = take(store, source, shard_files)
        label_all(store, source, snapshot)
        merged = merge(store, JOB, snapshot, COLOURS, 2)
        shas.add((merged.predictions_jsonl.sha256, merged.predictions_csv.sha256, merged.quarantine_jsonl.sha256))
    assert len(shas) == 1


def test_nothing_is_merged_while_a_shard_is_missing(store: ObjectStore, source: ObjectStore) -> None:
    snapshot = take(store, source, 4)
    label_all(store, source, snapshot)
    store.delete([names.prediction_shard(JOB, 2)])
    with pytest.raises(InternalError, match="3 of 4 shards"):
        merge(store, JOB, snapshot, COLOURS, 2)
    assert store.head(names.prediction_file(JOB, "predictions.jsonl")) is None


@pytest.mark.parametrize("damage", ["cut", "another shard's", "a file twice"])
def test_a_shard_that_is_not_about_its_files_is_not_merged(
    store: ObjectStore, source: ObjectStore, damage: str
) -> None:
    snapshot = take(store, source, 4)
    results = label_all(store, source, snapshot)
    twice = results[1].model_copy(update={"labelled": [*results[1].labelled, results[1].labelled[0]]})
    bytes_of = {
        "cut": results[1].model_dump_json().encode()[:-9],
        "another shard's": results[0].model_dump_json().encode(),
        "a file twice": twice.model_dump_json().encode(),
    }
    store.put(names.prediction_shard(JOB, 1), bytes_of[damage])
    with pytest.raises(CorruptObject, match="00000001"):
        merge(store, JOB, snapshot, COLOURS, 2)


def test_a_model_with_fewer_labels_than_asked_for_has_as_many_columns(store: ObjectStore, source: ObjectStore) -> None:
    snapshot = take(store, source, 4)
    label_all(store, source, snapshot, top_k=1000)
    merge(store, JOB, snapshot, COLOURS, 1000)
    table = list(csv.reader(lines(store, "predictions.csv")))
    assert {len(row) for row in table} == {1 + 2 * len(COLOURS)}


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_a_table_gives_every_text_back(cells: list[str]) -> None:
    line = csv_line(cells)
    assert line.endswith("\n")
    assert list(csv.reader(io.StringIO(line, newline=""))) == [cells]


@given(TEXT, TEXT, st.floats(0, 1, width=32))
def test_a_row_gives_path_label_and_probability_back(path: str, label: str, probability: float) -> None:
    image = LabelledImage(
        path=path, sha256="0" * 64, predictions=[Prediction(label=label, probability=probability, index=0)]
    )
    text = csv_header(1) + csv_row(image)
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert (row["path"], row["label_1"], float(row["probability_1"])) == (path, label, probability)
