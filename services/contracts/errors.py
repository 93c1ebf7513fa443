"""The error tree. Three branches say who can do something about it; no HTTP here.

Every error has a stable `code` for programs, a message for people that names the offending value and what to do,
and `details`, JSON-compatible. Instances survive pickling, so they may cross Ray's process boundaries.
`services.runtime.problems` turns codes into RFC 9457 problem details.
"""

from typing import ClassVar, Self

from pydantic import JsonValue


class RekindleError(Exception):
    """Base of every error that Rekindle raises on purpose."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, details: dict[str, JsonValue] | None = None) -> None:
        super().__init__(message, details)
        self.message = message
        self.details: dict[str, JsonValue] = details or {}

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type[Self], tuple[str, dict[str, JsonValue]]]:
        return (type(self), (self.message, self.details))


# --- the caller can fix it ------------------------------------------------------------------------------------------


class CallerError(RekindleError):
    """The request or the data is at fault; repeating it unchanged fails again."""

    code = "invalid_request"


class Unauthenticated(CallerError):
    code = "unauthenticated"


class PermissionDenied(CallerError):
    code = "permission_denied"


class NotFound(CallerError):
    code = "not_found"


class Conflict(CallerError):
    """The resource is in a state that does not allow this, or somebody else was faster."""

    code = "conflict"


class IdempotencyKeyReused(CallerError):
    """The same Idempotency-Key came with another body."""

    code = "idempotency_key_reused"


class PayloadTooLarge(CallerError):
    code = "payload_too_large"


class UnsupportedMediaType(CallerError):
    code = "unsupported_media_type"


class SourceNotAllowed(CallerError):
    """The URI is outside the prefixes that the operator allows."""

    code = "source_not_allowed"


class SourceUnreadable(CallerError):
    """The bucket, prefix or folder does not exist, or the credentials do not open it."""

    code = "source_unreadable"


class SourceEmpty(CallerError):
    """There are no files below the prefix."""

    code = "source_empty"


class DatasetEmpty(CallerError):
    code = "dataset_empty"


class DatasetTooFewClasses(CallerError):
    code = "dataset_too_few_classes"


class ClassTooSmall(CallerError):
    """A class has fewer usable images than training and validation need."""

    code = "class_too_small"


class TooManyQuarantined(CallerError):
    """More files than the spec allows could not be used."""

    code = "too_many_quarantined"


class DatasetNotReady(CallerError):
    """The upload was not completed."""

    code = "dataset_not_ready"


class ImageRejected(CallerError):
    """The bytes are not an image that can be used. `details["reason"]` is a `QuarantineReason`."""

    code = "image_rejected"


class LabelUnknown(CallerError):
    """The version has no class of that name. `details["labels"]` are some that it has."""

    code = "label_unknown"


class ParentUnusable(CallerError):
    """A job cannot go on from this version as the spec wants it to."""

    code = "parent_unusable"


class WeightsUnusable(CallerError):
    """The weights do not exist, do not match their sha256, or do not fit the backbone."""

    code = "weights_unusable"


class ExportFailed(CallerError):
    """The archive could not be built. `details["code"]` says why."""

    code = "export_failed"


# --- retry later ----------------------------------------------------------------------------------------------------


class RetryLater(RekindleError):
    """Nothing is wrong with the request. `retry_after_s` is when to try again."""

    code = "unavailable"
    retry_after_s: ClassVar[int] = 2


class ObjectStoreUnavailable(RetryLater):
    code = "object_store_unavailable"


class DatabaseUnavailable(RetryLater):
    code = "database_unavailable"


class ClusterUnavailable(RetryLater):
    """The Ray cluster cannot be reached. Says nothing about whether its jobs live."""

    code = "cluster_unavailable"


class ModelLoading(RetryLater):
    """The model exists, but no replica serves it yet and the request's deadline ran out while waiting."""

    code = "model_loading"


class Overloaded(RetryLater):
    code = "overloaded"


# --- our bug --------------------------------------------------------------------------------------------------------


class InternalError(RekindleError):
    """An invariant of ours does not hold."""

    code = "internal_error"


class CorruptObject(InternalError):
    """An object in the bucket does not match the sha256 in its manifest."""

    code = "corrupt_object"


class Fenced(RekindleError):
    """A newer attempt of the same job exists; this one must stop without committing anything."""

    code = "fenced"
