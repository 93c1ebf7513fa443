"""Who a running fit works for, and what it is told."""

import threading

from ray_cluster.train.fit_control import FitControl, Identity, Order


def test_a_fit_is_adopted_by_newer_identities_only() -> None:
    control = FitControl(Identity(2, 1))
    assert control.adopt(Identity(2, 1))
    assert not control.adopt(Identity(2, 0))
    assert not control.adopt(Identity(1, 9))
    assert control.adopt(Identity(3, 0))
    assert control.identity == Identity(3, 0)
    assert not control.hear(Identity(2, 1))
    assert control.hear(Identity(3, 0))


def test_silence_is_counted_from_the_last_call_under_its_identity() -> None:
    now = 100.0
    control = FitControl(Identity(1, 1), clock=lambda: now)
    now = 107.0
    assert not control.hear(Identity(1, 0))
    assert control.silent_s() == 7.0
    assert control.hear(Identity(1, 1))
    assert control.silent_s() == 0.0


def test_an_order_to_save_is_done_once_and_one_to_stop_stays() -> None:
    control = FitControl(Identity(1, 1))
    assert control.next_order() is Order.GO_ON
    control.give(Order.SAVE)
    assert [control.next_order(), control.next_order()] == [Order.SAVE, Order.GO_ON]
    control.give(Order.HAND_OVER)
    assert [control.next_order(), control.next_order()] == [Order.HAND_OVER, Order.HAND_OVER]
    control.give(Order.ABANDON)
    control.give(Order.SAVE)
    assert control.next_order() is Order.ABANDON


def test_who_waits_for_an_adoption_is_told_of_it() -> None:
    control = FitControl(Identity(1, 1))
    assert not control.wait_until_adopted(Identity(1, 1), 0.01)
    adopter = threading.Timer(0.05, control.adopt, [Identity(2, 0)])
    adopter.start()
    assert control.wait_until_adopted(Identity(1, 1), 10)
    adopter.join()
