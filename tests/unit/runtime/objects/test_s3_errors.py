"""What S3's answers mean. Each pair is an answer as botocore parses it, and the error of ours."""

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
)

from services.contracts.errors import CallerError, NotFound, ObjectStoreUnavailable, RekindleError, SourceUnreadable
from services.runtime.objects import s3_errors


def answer(status: int, code: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "text"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject"
    )


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "NoSuchKey", NotFound),
        (404, "404", NotFound),
        (404, "NoSuchBucket", SourceUnreadable),
        (404, "NoSuchUpload", s3_errors.NoSuchUpload),
        (403, "AccessDenied", SourceUnreadable),
        (403, "403", SourceUnreadable),
        (401, "401", SourceUnreadable),
        (301, "301", SourceUnreadable),
        (301, "PermanentRedirect", SourceUnreadable),
        (400, "AuthorizationHeaderMalformed", SourceUnreadable),
        (400, "ExpiredToken", SourceUnreadable),
        (412, "PreconditionFailed", s3_errors.ConditionFailed),
        (412, "412", s3_errors.ConditionFailed),
        (416, "InvalidRange", s3_errors.BeyondEnd),
        (409, "ConditionalRequestConflict", ObjectStoreUnavailable),
        (409, "OperationAborted", ObjectStoreUnavailable),
        (400, "RequestTimeout", ObjectStoreUnavailable),
        (429, "429", ObjectStoreUnavailable),
        (500, "InternalError", ObjectStoreUnavailable),
        (502, "502", ObjectStoreUnavailable),
        (503, "SlowDown", ObjectStoreUnavailable),
        (503, "Brand New Code", ObjectStoreUnavailable),
        (501, "NotImplemented", CallerError),
        (400, "EntityTooLarge", CallerError),
    ],
)
def test_answers(status: int, code: str, expected: type[RekindleError]) -> None:
    explained = s3_errors.explain(answer(status, code), "reading s3://bucket/key")

    assert type(explained) is expected
    assert explained.message.startswith("reading s3://bucket/key")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (EndpointConnectionError(endpoint_url="http://x"), ObjectStoreUnavailable),
        (ConnectTimeoutError(endpoint_url="http://x"), ObjectStoreUnavailable),
        (ReadTimeoutError(endpoint_url="http://x"), ObjectStoreUnavailable),
        (ResponseStreamingError(error="cut"), ObjectStoreUnavailable),
        (NoCredentialsError(), SourceUnreadable),
        (ProfileNotFound(profile="nobody"), SourceUnreadable),
        (ParamValidationError(report="bad"), CallerError),
    ],
)
def test_failures_without_an_answer(failure: s3_errors.S3Failure, expected: type[RekindleError]) -> None:
    assert type(s3_errors.explain(failure, "reading s3://bucket/key")) is expected
