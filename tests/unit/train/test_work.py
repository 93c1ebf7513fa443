"""A stage tells its work from its waiting."""

import pytest

from ray_cluster.train.work import Span, Watch, by_machine, covered_s
from services.contracts.jobs import Machine


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([], 0),
        ([(1, 3)], 2),
        ([(1, 3), (2, 5), (4, 5)], 4),
        ([(6, 7), (1, 3)], 3),
        ([(1, 9), (2, 3), (8, 10)], 9),
        ([(-5, -1), (-1, 2), (9, 30), (10, 11)], 3),
        ([(4, 3)], 0),
    ],
)
def test_work_side_by_side_counts_once_and_outside_not_at_all(spans: list[tuple[float, float]], seconds: float) -> None:
    assert covered_s([Span(*span) for span in spans], Span(0, 10)) == pytest.approx(seconds)


def test_work_that_fails_was_work() -> None:
    watch = Watch()
    with pytest.raises(ValueError, match="no"), watch.working():
        raise ValueError("no")
    assert len(watch.spans) == 1
    assert watch.spans[0].ended_s >= watch.spans[0].began_s


def test_each_machine_has_its_share_and_a_drivers_work_is_nobodys() -> None:
    first, second = (Machine(node_id=name, instance_type=None, market="spot") for name in "ab")
    spans = [Span(5, 9, second), Span(1, 3, first), Span(2, 6, first), Span(0, 99)]
    shares = by_machine(spans)
    assert [(each.machine.node_id, each.began_at.timestamp(), each.ended_at.timestamp()) for each in shares] == [
        ("a", 1, 6),
        ("b", 5, 9),
    ]
    assert [each.busy_s for each in shares] == [6, 4]
