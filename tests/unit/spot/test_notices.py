"""What the service's words mean, and when a node should be empty."""

from datetime import UTC, datetime, timedelta

import pytest

from ray_cluster.spot.notices import (
    Action,
    Notice,
    NoticeUnreadable,
    drain_deadline,
    read_instance_action,
    read_rebalance,
)

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate", "of_a_later_year"])
def test_every_action_is_a_reason_to_leave(action: str) -> None:
    notice = read_instance_action(f'{{"action": "{action}", "time": "2026-11-24T08:02:00Z"}}')
    assert notice == Notice(action, NOW + timedelta(minutes=2))
    assert "2026-11-24T08:02:00Z" in notice.reason


def test_rebalance_has_no_end() -> None:
    notice = read_rebalance('{"noticeTime": "2026-11-24T08:00:00Z"}')
    assert notice == Notice(Action.REBALANCE, None)
    assert drain_deadline(notice, NOW, NOW, 10) is None


@pytest.mark.parametrize("body", ["", "<html>", "{}", '{"action": "stop"}', '{"action": "stop", "time": "soon"}', "[]"])
def test_other_answers(body: str) -> None:
    with pytest.raises(NoticeUnreadable):
        read_instance_action(body)
    with pytest.raises(NoticeUnreadable):
        read_rebalance(body)


@pytest.mark.parametrize(
    ("ends_in_s", "service_ahead_s", "margin_s", "expected_s"),
    [
        (120, 0, 10, 110),
        (120, None, 10, 110),
        (30, 0, 0, 30),
        # The machine's clock is wrong: what counts is how long is left by the service's.
        (3720, 3600, 10, 110),
        (-3480, -3600, 10, 110),
        # Its time is not known and the clocks differ: never later than AWS ever gives.
        (3720, None, 10, 110),
        # Late, or all but over: at once, and not in the past.
        (5, 0, 10, 1),
        (-60, 0, 10, 1),
    ],
)
def test_deadlines(ends_in_s: int, service_ahead_s: int | None, margin_s: float, expected_s: int) -> None:
    notice = Notice(Action.TERMINATE, NOW + timedelta(seconds=ends_in_s))
    service_now = None if service_ahead_s is None else NOW + timedelta(seconds=service_ahead_s)
    assert drain_deadline(notice, service_now, NOW, margin_s) == NOW + timedelta(seconds=expected_s)
