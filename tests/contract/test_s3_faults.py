"""What the S3 store makes of a server that fails, on the way to a real one."""

import io
from collections.abc import Iterator

import pytest

from services.contracts.errors import CallerError, NotFound, ObjectStoreUnavailable, RekindleError, SourceUnreadable
from services.runtime.objects import ObjectStore, RetryPolicy, open_store, self_test
from tests.servers.faulty_s3 import Answer, CutBody, FaultyS3, LoseAnswer, faulty_s3
from tests.servers.s3 import S3Server

PATIENT = RetryPolicy(base_delay_s=0.001, max_delay_s=0.01, total_s=20)
HASTY = RetryPolicy(base_delay_s=0.001, max_delay_s=0.01, total_s=0.05)
PART = 8 * 2**20


@pytest.fixture
def faulty(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, s3_bucket: str) -> Iterator[FaultyS3]:
    """An endpoint in front of the S3 server; this process's AWS environment leads to it."""
    with faulty_s3(s3_server.endpoint_url) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.endpoint_url)
        yield endpoint


@pytest.fixture
def store(faulty: FaultyS3, s3_bucket: str) -> ObjectStore:
    return open_store(f"{s3_bucket}/data", retry=PATIENT)


BUSY = [Answer(503, "SlowDown"), Answer(500, "InternalError"), Answer(429, "TooManyRequests"), LoseAnswer()]


def test_passing_faults_are_ridden_out(store: ObjectStore, faulty: FaultyS3) -> None:
    faulty.add("PUT", *BUSY)
    store.put("a", b"1")
    faulty.add("GET", *BUSY, CutBody(), CutBody(), CutBody())
    assert store.get("a") == b"1"
    faulty.add("GET", *BUSY)
    assert [info.key for info in store.list("")] == ["a"]
    faulty.add("HEAD", *BUSY)
    assert store.head("a") is not None
    faulty.add("POST", *BUSY)
    store.delete(["a"])
    assert store.head("a") is None
    assert not faulty.faults


def test_a_lasting_fault_is_given_up(faulty: FaultyS3, s3_bucket: str) -> None:
    store = open_store(s3_bucket, retry=HASTY)
    faulty.always = Answer(503, "ServiceUnavailable")

    for use in (
        lambda: store.get("a"),
        lambda: store.put("a", b"1"),
        lambda: store.head("a"),
        lambda: [*store.list("")],
    ):
        with pytest.raises(ObjectStoreUnavailable, match=r"503 ServiceUnavailable|503"):
            use()
    assert len(faulty.requests) >= 8  # each of the four was tried again


def test_no_server_at_all_is_unavailable(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    with pytest.raises(ObjectStoreUnavailable, match=r"127\.0\.0\.1:9"):
        open_store(s3_bucket, retry=HASTY).get("a")


# --- conditional writes whose answer is lost ---


def test_the_winner_learns_that_it_won_though_the_answer_was_lost(store: ObjectStore, faulty: FaultyS3) -> None:
    faulty.add("PUT", LoseAnswer(), Answer(503, "SlowDown"))

    written = store.put("claim", b"mine", if_absent=True)

    assert written == store.head("claim")
    assert store.get("claim") == b"mine"


def test_the_winner_of_a_swap_learns_it_too(store: ObjectStore, faulty: FaultyS3) -> None:
    first = store.put("a", b"1")
    assert first is not None
    faulty.add("PUT", LoseAnswer())

    assert store.put("a", b"2", if_match=first.etag) == store.head("a")
    assert store.put("a", b"3", if_match=first.etag) is None


def test_the_loser_with_the_same_bytes_does_not_believe_that_it_won(store: ObjectStore, faulty: FaultyS3) -> None:
    store.put("claim", b"same", if_absent=True)
    faulty.add("PUT", LoseAnswer())

    assert store.put("claim", b"same", if_absent=True) is None


def test_a_conflict_of_two_writers_is_tried_again(store: ObjectStore, faulty: FaultyS3) -> None:
    faulty.add("PUT", Answer(409, "ConditionalRequestConflict"), Answer(409, "ConditionalRequestConflict"))

    assert store.put("a", b"1", if_absent=True) is not None


# --- multipart uploads ---


def test_a_multipart_upload_rides_out_faults(store: ObjectStore, faulty: FaultyS3) -> None:
    faulty.add("POST", Answer(503, "SlowDown"))
    faulty.add("PUT", Answer(500, "InternalError"), LoseAnswer())

    store.put_stream("big", io.BytesIO(b"x" * (2 * PART + 1)))

    assert store.get("big") == b"x" * (2 * PART + 1)


def test_a_completion_whose_answer_was_lost_is_a_success(store: ObjectStore, faulty: FaultyS3) -> None:
    class LoseCompletion(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            if not data:  # the next request is the completion
                faulty.add("POST", LoseAnswer())
            return data

    written = store.put_stream("big", LoseCompletion(b"x" * (PART + 1)))

    assert written == store.head("big")
    assert not faulty.faults
    completions = [request for request in faulty.requests if request.startswith("POST") and "uploadId" in request]
    assert len(completions) > 1


def test_a_failing_stream_aborts_its_upload(store: ObjectStore, faulty: FaultyS3) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            if not data:
                raise ConnectionResetError("gone")
            return data

    with pytest.raises(ConnectionResetError):
        store.put_stream("big", Failing(b"x" * (PART + 1)))

    assert [request for request in faulty.requests if request.startswith("DELETE") and "uploadId" in request]


# --- what cannot be ridden out ---


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (403, "AccessDenied", "policy"),
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (403, "RequestTimeTooSkewed", "clock"),
        (400, "ExpiredToken", "expired"),
        (404, "NoSuchBucket", "bucket does not exist"),
    ],
)
def test_a_source_that_does_not_open_says_why_at_once(
    store: ObjectStore, faulty: FaultyS3, status: int, code: str, advice: str
) -> None:
    faulty.always = Answer(status, code)

    for use in (lambda: store.get("a"), lambda: [*store.list("")], lambda: store.put("a", b"1")):
        with pytest.raises(SourceUnreadable, match=advice) as caught:
            use()
        assert "s3://" in caught.value.message
        assert caught.value.details["reason"] == code


def test_head_has_no_body_and_is_understood_all_the_same(store: ObjectStore, faulty: FaultyS3) -> None:
    faulty.add("HEAD", Answer(403, "AccessDenied"))
    with pytest.raises(SourceUnreadable, match="do not allow"):
        store.head("a")


@pytest.mark.parametrize("name", ["get", "head", "list", "put", "list_folder", "delete", "put_stream"])
def test_a_bucket_that_does_not_exist(s3_bucket: str, name: str) -> None:
    store = open_store(f"{s3_bucket}-not/data")
    uses = {
        "get": lambda: store.get("a"),
        "head": lambda: store.head("a"),
        "list": lambda: [*store.list("")],
        "put": lambda: store.put("a", b"1", if_absent=True),
        "list_folder": lambda: store.list_folder(""),
        "delete": lambda: store.delete(["a"]),
        "put_stream": lambda: store.put_stream("a", io.BytesIO(b"1" * (PART + 1))),
    }

    with pytest.raises(SourceUnreadable, match="bucket does not exist"):
        uses[name]()


def test_missing_credentials_say_so(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_store(s3_bucket)

    with pytest.raises(SourceUnreadable, match="no AWS credentials"):
        store.get("a")
    with pytest.raises(SourceUnreadable, match="no AWS credentials"):
        store.presign_put("a", 60)


def test_a_missing_profile_says_so(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")

    with pytest.raises(SourceUnreadable, match="nobody"):
        open_store(s3_bucket).get("a")


def test_a_missing_key_is_not_a_missing_bucket(store: ObjectStore) -> None:
    with pytest.raises(NotFound, match="data/none"):
        store.get("none")


def test_a_server_without_conditions_is_refused(store: ObjectStore, faulty: FaultyS3) -> None:
    faulty.always = Answer(501, "NotImplemented")

    with pytest.raises(CallerError, match="501 NotImplemented") as caught:
        self_test(store)
    assert store.uri in caught.value.message


def test_every_error_survives_the_way_to_another_process(store: ObjectStore, faulty: FaultyS3) -> None:
    faulty.always = Answer(403, "AccessDenied")
    with pytest.raises(RekindleError) as caught:
        store.get("a")

    kind, arguments = caught.value.__reduce__()
    assert (str(kind(*arguments)), kind(*arguments).details) == (str(caught.value), caught.value.details)


# --- what others left in a bucket ---


def test_folder_markers_are_no_objects(s3_bucket: str, s3_server: S3Server) -> None:
    store = open_store(f"{s3_bucket}/data")
    for key in ("data/", "data/cats/", "data/dogs/", "data/dogs/1.jpg", "data/odd//2.jpg"):
        put_as_somebody_else(s3_server, s3_bucket, key)

    assert [info.key for info in store.list("")] == ["dogs/1.jpg", "odd//2.jpg"]
    assert store.list_folder("").folders == ["cats", "dogs", "odd"]
    assert store.list_folder("").objects == []
    assert store.list_folder("cats/").objects == []
    assert store.get("odd//2.jpg") == b""


def put_as_somebody_else(s3_server: S3Server, bucket_uri: str, key: str) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=s3_server.endpoint_url)
    client.put_object(Bucket=bucket_uri.removeprefix("s3://"), Key=key, Body=b"")
