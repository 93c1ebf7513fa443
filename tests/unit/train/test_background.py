"""Calls run in order, off the caller's thread, and only droppable ones are dropped."""

import threading

from ray_cluster.train.background import MAX_WAITING, Background


def test_calls_run_in_order_and_droppable_ones_are_dropped_when_too_many_wait() -> None:
    background, gate, done = Background(), threading.Event(), []
    background.run(lambda: done.append("first") if gate.wait(10) else None)
    for number in range(MAX_WAITING + 50):
        background.run(lambda number=number: done.append(number), droppable=True)
    background.run(lambda: done.append("last"))
    assert not background.close(0.01)
    gate.set()
    assert background.close(10)
    assert (done[0], done[-1]) == ("first", "last")
    kept = done[1:-1]
    assert kept == list(range(len(kept)))
    assert MAX_WAITING - 1 <= len(kept) <= MAX_WAITING
