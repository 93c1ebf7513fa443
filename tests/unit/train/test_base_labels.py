"""Labels of the pretrained classifier, in the order of its outputs."""

import json

import pytest

from ray_cluster.train.base_import import parse_labels
from services.contracts.errors import CallerError


def test_a_list_of_names() -> None:
    assert parse_labels(b'["b", "a"]', "file:///l.json") == ["b", "a"]


def test_keras_class_index_is_ordered_by_number_and_repeated_names_are_told_apart() -> None:
    index = {"10": ["n1", "ten"], **{str(number): [f"n{number}", f"name {number}"] for number in range(10)}}
    index["3"], index["4"] = ["n02012849", "crane"], ["n03126707", "crane"]
    labels = parse_labels(json.dumps(index).encode(), "file:///l.json")
    assert labels[2:5] == ["name 2", "crane (n02012849)", "crane (n03126707)"]
    assert labels[10] == "ten"


@pytest.mark.parametrize("data", [b"", b"{", b"3", b'{"a": 1}', b'{"1": ["n1", "x"]}', b"[1, 2]"])
def test_anything_else_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(CallerError, match=r"file:///l\.json"):
        parse_labels(data, "file:///l.json")
