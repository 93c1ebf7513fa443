"""A batch prediction from and into each kind of store: the same results, byte for byte."""

from pathlib import Path

import pytest

from ray_cluster.predict.prediction import predict
from services.contracts.batch_predictions import BatchResult
from services.runtime.objects import open_store
from tests.unit.predict.predictions import context_of, label_all, picture, take

FILES = {
    "a, b.png": picture("red"),
    "folder/1.png": picture("green"),
    "folder/2.png": b"broken",
    "folder.png": picture("blue"),
    "ß/notes.txt": b"hello",
}


def labelled(bucket_uri: str) -> tuple[BatchResult, list[bytes]]:
    """The result of labelling a source in the bucket, and the contents of its files."""
    store, source = open_store(f"{bucket_uri}/own"), open_store(f"{bucket_uri}/new")
    for path, data in FILES.items():
        source.put(path, data)
    label_all(store, source, take(store, source, 2))
    result = predict(context_of(store, source))
    return result, [store.get(ref.key) for ref in result.files]


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_the_results_do_not_depend_on_the_store(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    expected, contents = labelled((tmp_path / "expected").as_uri())
    uri = request.getfixturevalue("s3_bucket") if kind == "s3" else (tmp_path / "other").as_uri()
    result, same = labelled(uri)
    assert same == contents
    assert [ref.sha256 for ref in result.files] == [ref.sha256 for ref in expected.files]
    assert (result.image_count, result.quarantined_count) == (3, 2)
    assert contents[1].decode().splitlines()[1].startswith('"a, b.png",red,')
