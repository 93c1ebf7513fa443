"""What S3's answers and boto3's exceptions mean, as errors of ours. A pure function over both."""

# boto3 comes without types; what is used of it is typed here.
# pyright: reportMissingTypeStubs=false

from http import HTTPStatus
from typing import cast

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from services.contracts.errors import CallerError, NotFound, ObjectStoreUnavailable, RekindleError, SourceUnreadable

S3Failure = ClientError | BotoCoreError
BOTO_FAILURES = (ClientError, BotoCoreError)
"""Everything that boto3 raises about a request."""


class ConditionFailed(RekindleError):
    """The condition of a conditional write did not hold. Never leaves this package."""


class BeyondEnd(RekindleError):
    """A range starts at or after the object's end. Never leaves this package."""


class NoSuchUpload(RekindleError):
    """The multipart upload was completed or aborted already. Never leaves this package."""


_TRY_AGAIN = frozenset(
    {
        "RequestTimeout",
        "RequestTimeoutException",
        "PriorRequestNotComplete",
        "InternalError",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        # Two conditional writes met; the one that comes back sees who won.
        "ConditionalRequestConflict",
        "OperationAborted",
    }
)

_UNREADABLE = {
    "NoSuchBucket": "the bucket does not exist: check its name and the endpoint",
    "AccessDenied": "the credentials do not allow it: check the bucket's policy and the role's s3: permissions",
    "AllAccessDisabled": "access to the bucket is disabled",
    "InvalidAccessKeyId": "the access key is not known: check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret does not fit the access key: check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired: renew them",
    "TokenRefreshRequired": "the credentials have expired: renew them",
    "InvalidToken": "the session token is not valid: check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
    "PermanentRedirect": "the bucket is in another region: set AWS_DEFAULT_REGION to it",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_DEFAULT_REGION to it",
    "IllegalLocationConstraintException": "the bucket is in another region: set AWS_DEFAULT_REGION to it",
    "InvalidBucketName": "the bucket's name is not valid",
    "InvalidObjectState": "the object is archived: restore it first",
}

# HEAD answers have no body and so no code; botocore puts the status in its place.
_CODE_OF_STATUS = {
    HTTPStatus.MOVED_PERMANENTLY: "PermanentRedirect",
    HTTPStatus.UNAUTHORIZED: "AccessDenied",
    HTTPStatus.FORBIDDEN: "AccessDenied",
}


def explain(error: S3Failure, what: str) -> RekindleError:
    """The error of ours that a failure means. `what` says what was tried, e.g. "reading s3://bucket/key"."""
    if isinstance(error, ClientError):
        return _explain_answer(error, what)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or an instance role"
        return SourceUnreadable(f"{what}: there are no AWS credentials: {advice}", {"reason": "NoCredentials"})
    if isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError | CredentialRetrievalError):
        return ObjectStoreUnavailable(f"{what}: {error}", {"reason": type(error).__name__})
    if isinstance(error, ParamValidationError):
        return CallerError(f"{what}: {error}")
    return SourceUnreadable(f"{what}: boto3's configuration is at fault: {error}", {"reason": type(error).__name__})


def _explain_answer(error: ClientError, what: str) -> RekindleError:
    status, code, message = _answer(error)
    details = f"{what}: S3 answered {status} {code}"
    if code == "NoSuchUpload":
        return NoSuchUpload(details)
    if code in _UNREADABLE:
        return SourceUnreadable(f"{details}: {_UNREADABLE[code]}", {"reason": code})
    if code in _TRY_AGAIN or status == HTTPStatus.TOO_MANY_REQUESTS:
        return ObjectStoreUnavailable(f"{details}: {message}", {"reason": code})
    if code == "NotImplemented" or status == HTTPStatus.NOT_IMPLEMENTED:
        return CallerError(f"{details}: the store lacks what Rekindle needs: use another", {"reason": code})
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ObjectStoreUnavailable(f"{details}: {message}", {"reason": code})
    if status == HTTPStatus.NOT_FOUND:
        return NotFound(f"{what}: it does not exist")
    if status == HTTPStatus.PRECONDITION_FAILED:
        return ConditionFailed(details)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return BeyondEnd(details)
    return CallerError(f"{details}: {message}", {"reason": code})


def _answer(error: ClientError) -> tuple[int, str, str]:
    """HTTP status, S3's code and S3's message."""
    response = cast("dict[str, dict[str, object]]", error.response)
    status = int(str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)))
    parsed = response.get("Error", {})
    code = str(parsed.get("Code", ""))
    if code in {"", str(status), HTTPStatus.FORBIDDEN.phrase, HTTPStatus.MOVED_PERMANENTLY.phrase}:
        code = _CODE_OF_STATUS.get(HTTPStatus(status), code) if status else code
    return status, code, str(parsed.get("Message", ""))
