"""What EC2 says about a machine's near end, read from the words of its metadata service. Pure.

AWS: "Spot Instance interruption notices" and "EC2 instance rebalance recommendations" in the EC2 user guide.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

INSTANCE_ACTION_PATH = "/latest/meta-data/spot/instance-action"
REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"

NOTICE_S = 120
"""AWS gives this long at most. A notice that names a later time comes from a clock that is not this machine's."""


class Action(StrEnum):
    """What happens to the machine. For a Ray node it is all one: its processes are gone or stand still."""

    TERMINATE = "terminate"
    STOP = "stop"
    HIBERNATE = "hibernate"
    REBALANCE = "rebalance"
    """Not an end yet: the machine is more likely than others to be taken."""


@dataclass(frozen=True, slots=True)
class Notice:
    """The machine will go."""

    action: str
    """An `Action`, or a word that AWS adds one day: also a reason to leave."""
    at: datetime | None
    """When, at the earliest; None for a rebalance recommendation."""

    @property
    def reason(self) -> str:
        """For people, in Ray's dashboard."""
        if self.at is None:
            return "EC2 recommends to leave this spot machine: it is likely to be interrupted"
        return f"EC2 will {self.action} this spot machine at {self.at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


class NoticeUnreadable(ValueError):
    """The metadata service said something else than AWS documents."""


class _InstanceAction(BaseModel):
    model_config = ConfigDict(extra="ignore")

    action: str
    time: AwareDatetime


class _Rebalance(BaseModel):
    model_config = ConfigDict(extra="ignore")

    noticeTime: AwareDatetime


def read_instance_action(body: str) -> Notice:
    """The notice in the answer of `spot/instance-action`. Raises `NoticeUnreadable`."""
    answer = _read(_InstanceAction, body)
    return Notice(answer.action, answer.time)


def read_rebalance(body: str) -> Notice:
    """The notice in the answer of `events/recommendations/rebalance`. Raises `NoticeUnreadable`."""
    _read(_Rebalance, body)
    return Notice(Action.REBALANCE, None)


def _read(model: type[Any], body: str) -> Any:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise NoticeUnreadable(f"the metadata service answered {body[:200]!r}") from error


def drain_deadline(notice: Notice, service_now: datetime | None, now: datetime, margin_s: float) -> datetime | None:
    """When the node should be empty, by this machine's clock, on which Ray's deadlines are; None for no hurry.

    `service_now` is the metadata service's own time at `now`: the notice's time is on its clock, and what counts is how
    long is left. Without it the clocks are taken to agree. Never in the past, and never later than AWS ever gives.
    """
    if notice.at is None:
        return None
    left = notice.at - (service_now or now)
    left = min(left, timedelta(seconds=NOTICE_S)) - timedelta(seconds=margin_s)
    return now + max(left, timedelta(seconds=1))
