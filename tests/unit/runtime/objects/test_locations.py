"""Which URIs open which store."""

import subprocess
import sys
from pathlib import Path

import pytest

from services.contracts.errors import CallerError
from services.runtime.objects import open_object, open_store


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b c/é/", "s3://bucket/a/b c/é"),
        ("s3://my.bucket-1/a?b#c%20", "s3://my.bucket-1/a?b#c%20"),
        ("file:///tmp/x/", "file:///tmp/x"),
        ("file:///tmp/with%20space", "file:///tmp/with%20space"),
        ("file:///tmp/with space", "file:///tmp/with%20space"),
        ("file:///tmp//x", "file:///tmp/x"),
    ],
)
def test_normal_form(uri: str, expected: str) -> None:
    assert open_store(uri).uri == expected
    assert open_store(open_store(uri).uri).uri == expected


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/tmp/x",
        "tmp",
        "gs://bucket/x",
        "http://bucket/x",
        "S3://bucket",
        "s3:/bucket",
        "s3://",
        "s3:///key",
        "s3://b",
        "s3://bad bucket/x",
        "s3://bucket/../other",
        "s3://bucket/a//b",
        "file://",
        "file://relative/x",
        "file://host/x",
        "file:/tmp/x",
        "file:///tmp/../etc",
        "file:///tmp/%2e%2e/etc",
        "file:///tmp/%00",
    ],
)
def test_other_uris_are_refused_by_name(uri: str) -> None:
    with pytest.raises(CallerError) as caught:
        open_store(uri)
    assert (
        repr(uri)[1:-1] in caught.value.message
        or "'..' segment" in caught.value.message
        or "empty segment" in (caught.value.message)
    )


@pytest.mark.parametrize(
    ("uri", "store_uri", "key"),
    [
        ("s3://bucket/net.h5", "s3://bucket", "net.h5"),
        ("s3://bucket/a/b/net 1.h5", "s3://bucket/a/b", "net 1.h5"),
        ("file:///data/net%201.h5", "file:///data", "net 1.h5"),
        ("file:///net.h5", "file:///", "net.h5"),
    ],
)
def test_one_object(uri: str, store_uri: str, key: str) -> None:
    store, found = open_object(uri)

    assert (store.uri, found) == (store_uri, key)


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3://bucket/a/", "file:///", "net.h5", "", "/a/b"])
def test_a_uri_without_an_object(uri: str) -> None:
    with pytest.raises(CallerError):
        open_object(uri)


def test_opening_writes_nothing(tmp_path: Path) -> None:
    open_store((tmp_path / "none").as_uri())

    assert list(tmp_path.iterdir()) == []


def test_a_local_store_does_without_boto3(tmp_path: Path) -> None:
    """It takes half a second and 25 MB, which a serving process on a local folder need not spend."""
    program = (
        "import sys\n"
        "from services.runtime.objects import open_store, self_test\n"
        f"self_test(open_store({tmp_path.as_uri()!r}))\n"
        "print('boto3' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == "False"
