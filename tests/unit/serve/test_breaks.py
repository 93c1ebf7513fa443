"""Work that others come before takes breaks while they are busy."""

import pytest

from ray_cluster.serve.breaks import LONGEST_S, TIMES, Breaks


def test_breaks_follow_from_how_long_the_work_took_and_are_taken_only_while_others_are_busy() -> None:
    now_s, busy, breaks_s = 100.0, True, list[float]()
    breaks = Breaks(lambda: busy, clock=lambda: now_s, sleep=breaks_s.append)
    for work_s, pause_s in ((0.1, 0.0), (9.0, 0.05), (0.1, 0.0)):
        with breaks.before():
            now_s += work_s
        now_s += pause_s
    assert breaks_s == pytest.approx([TIMES * 0.1, LONGEST_S - 0.05])
    busy = False
    with breaks.before():
        now_s += 1
    assert len(breaks_s) == 2
