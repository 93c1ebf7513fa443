"""Whose fault an error is."""

import errno

import pytest
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError

from ray_cluster.train.failures import AttemptFailed, classify
from services.contracts.errors import (
    ClassTooSmall,
    CorruptObject,
    Fenced,
    ObjectStoreUnavailable,
    SourceUnreadable,
    WeightsUnusable,
)
from services.contracts.jobs import Failure, FailureClass


class WorkerGroupError(Exception):
    """Looks like Ray Train's."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("Training failed due to worker errors")
        self.worker_failures = failures


def in_a_task(error: Exception) -> RayTaskError:
    return RayTaskError("compute", "traceback", error)


CASES = [
    (ClassTooSmall("class 'a' is too small"), FailureClass.USER, "class_too_small"),
    (SourceUnreadable("no such bucket"), FailureClass.USER, "source_unreadable"),
    (in_a_task(WeightsUnusable("wrong sha256")), FailureClass.USER, "weights_unusable"),
    (in_a_task(WeightsUnusable("wrong sha256")).as_instanceof_cause(), FailureClass.USER, "weights_unusable"),
    (ObjectStoreUnavailable("timeout"), FailureClass.INFRASTRUCTURE, "object_store_unavailable"),
    (in_a_task(ObjectStoreUnavailable("timeout")), FailureClass.INFRASTRUCTURE, "object_store_unavailable"),
    (WorkerCrashedError(), FailureClass.INFRASTRUCTURE, "process_lost"),
    (OutOfMemoryError("killed"), FailureClass.INFRASTRUCTURE, "process_lost"),
    (NodeDiedError("gone"), FailureClass.INFRASTRUCTURE, "cluster_lost"),
    (WorkerGroupError({0: RayActorError()}), FailureClass.INFRASTRUCTURE, "cluster_lost"),
    (ConnectionResetError("peer"), FailureClass.INFRASTRUCTURE, "connection_lost"),
    (OSError(errno.ENOSPC, "no space left"), FailureClass.INFRASTRUCTURE, "machine_failed"),
    (CorruptObject("sha256 differs"), FailureClass.UNKNOWN, "corrupt_object"),
    (FileNotFoundError(errno.ENOENT, "our bug"), FailureClass.UNKNOWN, "internal_error"),
    (in_a_task(ZeroDivisionError("oops")), FailureClass.UNKNOWN, "internal_error"),
    (WorkerGroupError({1: ValueError("shape")}), FailureClass.UNKNOWN, "internal_error"),
]


@pytest.mark.parametrize(("error", "failure_class", "code"), CASES)
def test_every_kind_of_error_has_its_class(error: Exception, failure_class: FailureClass, code: str) -> None:
    failure = classify(error)
    assert failure is not None
    assert (failure.failure_class, failure.code) == (failure_class, code)
    assert failure.message
    assert "Traceback" not in failure.message


def test_details_reach_the_user() -> None:
    failure = classify(in_a_task(ClassTooSmall("small", {"label": "a"})))
    assert failure is not None
    assert failure.details == {"label": "a"}


def test_being_fenced_is_no_failure() -> None:
    assert classify(Fenced("given up")) is None
    assert classify(in_a_task(Fenced("given up"))) is None


def test_a_failure_from_elsewhere_is_passed_on() -> None:
    failure = Failure(failure_class=FailureClass.USER, code="x", message="y")
    assert classify(AttemptFailed(failure)) == failure
