"""The fair queue: turns, whose items are given up, and that each item leaves it exactly once."""

from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.fair_queue import FairQueue

FLOWS = "abcd"


def drained(queue: FairQueue[str, str]) -> list[str]:
    taken = []
    while (item := queue.take()) is not None:
        taken.append(item)
    return taken


def filled(capacity: int, items: str) -> FairQueue[str, str]:
    """A queue with items named by flow and number, e.g. `a1`, in the order of `items`."""
    queue: FairQueue[str, str] = FairQueue(capacity)
    numbers: Counter[str] = Counter()
    for flow in items:
        numbers[flow] += 1
        assert queue.put(flow, f"{flow}{numbers[flow]}") is None
    return queue


def test_one_flow_alone_is_a_plain_queue() -> None:
    assert drained(filled(9, "aaaa")) == ["a1", "a2", "a3", "a4"]


def test_flows_take_turns() -> None:
    assert drained(filled(9, "aaaabcb")) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_whoever_comes_behind_a_flood_is_next_but_one_however_long_it_is() -> None:
    queue = filled(1000, "a" * 1000)
    given_up = [queue.put("b", f"b{number}") for number in (1, 2, 3)]
    assert given_up == ["a1000", "a999", "a998"]
    taken = []
    for number in range(6):
        queue.put("a", f"more {number}")  # the flood goes on
        taken.append(queue.take())
    assert taken == ["a1", "b1", "a2", "b2", "a3", "b3"]


def test_a_flow_that_comes_back_waits_for_its_turn() -> None:
    queue = filled(9, "aabb")
    assert queue.take() == "a1"
    assert queue.take() == "b1"
    queue.put("c", "c1")
    assert drained(queue) == ["a2", "b2", "c1"]


def test_a_full_queue_gives_up_the_newest_of_the_longest_flow_until_all_are_equal() -> None:
    queue = filled(4, "aaaa")
    assert queue.put("b", "b1") == "a4"
    assert queue.put("b", "b2") == "a3"
    assert queue.put("b", "b3") == "b3"
    assert queue.put("a", "a5") == "a5"
    assert queue.put("c", "c1") == "a2"
    assert drained(queue) == ["a1", "b1", "c1", "b2"]


def test_a_flow_with_its_share_is_never_given_up_for_another() -> None:
    queue = filled(4, "abcd")
    assert queue.put("e", "e1") == "e1"
    assert queue.put("a", "a2") == "a2"


def test_what_is_taken_out_makes_room() -> None:
    queue = filled(2, "ab")
    queue.discard("a", "a1")
    queue.discard("a", "a1")
    queue.discard("c", "c1")
    assert len(queue) == 1
    assert queue.put("b", "b2") is None
    assert drained(queue) == ["b1", "b2"]


def test_a_queue_that_gets_smaller_keeps_what_it_has_and_takes_less() -> None:
    queue = filled(4, "aaaa")
    queue.capacity = 2
    assert queue.put("a", "a5") == "a5"
    assert queue.put("b", "b1") == "a4"
    assert [queue.take() for _ in range(3)] == ["a1", "b1", "a2"]
    assert queue.put("b", "b2") is None
    assert drained(queue) == ["a3", "b2"]


def test_a_queue_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0"):
        FairQueue(0)


@given(capacity=st.integers(1, 12), flows=st.text(FLOWS, max_size=40))
def test_the_nth_of_a_flow_is_among_the_first_n_rounds(capacity: int, flows: str) -> None:
    queue: FairQueue[str, tuple[str, int]] = FairQueue(capacity)
    for number, flow in enumerate(flows):
        queue.put(flow, (flow, number))
    places: dict[str, list[int]] = {}
    place = 0
    while (item := queue.take()) is not None:
        place += 1
        places.setdefault(item[0], []).append(place)
    for of_flow in places.values():
        assert all(place <= n * len(places) for n, place in enumerate(of_flow, 1))


@given(
    capacity=st.integers(1, 8),
    steps=st.lists(st.tuples(st.sampled_from(["put", "put", "put", "take", "discard"]), st.sampled_from(FLOWS))),
)
def test_each_item_leaves_once_in_its_flows_order_and_the_longest_gives_up(
    capacity: int, steps: list[tuple[str, str]]
) -> None:
    queue: FairQueue[str, tuple[str, int]] = FairQueue(capacity)
    inside: dict[str, deque[tuple[str, int]]] = {flow: deque() for flow in FLOWS}
    for number, (step, flow) in enumerate(steps):
        if step == "put":
            inside[flow].append((flow, number))
            longest = max(map(len, inside.values()))
            is_full = sum(map(len, inside.values())) > capacity
            room = queue.has_room(flow)
            given_up = queue.put(flow, (flow, number))
            assert room is (given_up != (flow, number))
            assert (given_up is not None) is is_full
            if given_up is not None:
                assert len(inside[given_up[0]]) == longest
                assert inside[given_up[0]].pop() == given_up
        elif step == "take":
            taken = queue.take()
            assert (taken is None) is not any(inside.values())
            if taken is not None:
                assert inside[taken[0]].popleft() == taken
        elif inside[flow]:
            queue.discard(flow, inside[flow].pop())
        assert len(queue) == sum(map(len, inside.values()))
        assert {flow: queue.waiting(flow) for flow in FLOWS} == {flow: len(inside[flow]) for flow in FLOWS}
