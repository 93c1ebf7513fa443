"""Batches: what waits is taken together, in order, bounded; every item gets its own answer."""

import asyncio
import itertools
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_cluster.serve.batching import Batcher
from services.contracts.errors import ImageRejected, InternalError, Overloaded


class Worker:
    """Doubles numbers; refuses negative ones; the first batch can be held to let a queue build up."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.open.set()
        self.started = threading.Event()
        self.busy = 0
        self.most_busy = 0
        self.lock = threading.Lock()

    def run(self, items: Sequence[int]) -> Sequence[int | Exception]:
        with self.lock:
            self.batches.append(list(items))
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        self.started.set()
        self.open.wait(10)
        with self.lock:
            self.busy -= 1
        return [ImageRejected(f"{item} is bad") if item < 0 else 2 * item for item in items]


async def queue_up(
    batcher: Batcher[int, int], worker: Worker, items: list[int], flows: str = ""
) -> list[asyncio.Future[int]]:
    """Holds the only worker with item 0 and lines up `items` behind it; each item's flow is a letter of `flows`."""
    worker.open.clear()
    first = asyncio.ensure_future(batcher.submit(0, "a"))
    assert await asyncio.to_thread(worker.started.wait, 10)
    flow_of = dict(zip(items, flows or "a" * len(items), strict=True))
    rest = [asyncio.ensure_future(batcher.submit(item, flow_of[item])) for item in items]
    await asyncio.sleep(0)
    return [first, *rest]


async def test_a_lone_item_does_not_wait_for_company() -> None:
    worker = Worker()
    batcher = Batcher(worker.run, workers=1, max_batch=8, max_waiting=8)
    assert await batcher.submit(21, "a") == 42
    assert worker.batches == [[21]]
    assert batcher.longest_running_s() == 0


async def test_what_waits_shares_batches_in_order_and_bounded() -> None:
    worker = Worker()
    batcher = Batcher(worker.run, workers=1, max_batch=3, max_waiting=8)
    answers = await queue_up(batcher, worker, [1, 2, 3, 4, 5])
    assert batcher.longest_running_s() > 0
    worker.open.set()
    assert await asyncio.gather(*answers) == [0, 2, 4, 6, 8, 10]
    assert worker.batches == [[0], [1, 2, 3], [4, 5]]


async def test_a_bad_item_fails_alone() -> None:
    worker = Worker()
    batcher = Batcher(worker.run, workers=1, max_batch=8, max_waiting=8)
    answers = await queue_up(batcher, worker, [1, -1, 2])
    worker.open.set()
    outcomes = await asyncio.gather(*answers, return_exceptions=True)
    assert outcomes[1] == 2
    assert isinstance(outcomes[2], ImageRejected)
    assert outcomes[3] == 4


async def test_a_full_queue_refuses_at_once() -> None:
    worker = Worker()
    batcher = Batcher(worker.run, workers=1, max_batch=8, max_waiting=2)
    answers = await queue_up(batcher, worker, [1, 2])
    with pytest.raises(Overloaded):
        await batcher.submit(3, "a")
    worker.open.set()
    assert await asyncio.gather(*answers) == [0, 2, 4]
    assert await batcher.submit(3, "a") == 6


async def test_flows_take_turns_within_batches_and_across_them() -> None:
    worker = Worker()
    batcher = Batcher(worker.run, workers=1, max_batch=4, max_waiting=20)
    flood, other = list(range(1, 11)), [101, 102, 103]
    answers = await queue_up(batcher, worker, flood + other, "a" * 10 + "b" * 3)
    worker.open.set()
    assert await asyncio.gather(*answers) == [0, *(2 * item for item in flood + other)]
    assert worker.batches == [[0], [1, 101, 2, 102], [3, 103, 4, 5], [6, 7, 8, 9], [10]]


async def test_a_full_queue_refuses_the_flow_that_floods_it_and_not_the_newcomer() -> None:
    worker = Worker()
    batcher = Batcher(worker.run, workers=1, max_batch=8, max_waiting=4)
    answers = await queue_up(batcher, worker, [1, 2, 3, 4, 101, 102, 103], "aaaabbb")
    await asyncio.sleep(0)
    assert [answer.done() for answer in answers] == [False, False, False, True, True, False, False, True]
    worker.open.set()
    outcomes = await asyncio.gather(*answers, return_exceptions=True)
    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [0, 2, 4, 202, 204]
    refused = [outcome for outcome in outcomes if not isinstance(outcome, int)]
    assert [type(outcome) for outcome in refused] == [Overloaded] * 3
    assert "'a'" in str(refused[0])
    assert worker.batches == [[0], [1, 101, 2, 102]]


async def test_who_goes_away_leaves_its_place_to_others() -> None:
    worker = Worker()
    batcher = Batcher(worker.run, workers=1, max_batch=8, max_waiting=2)
    answers = await queue_up(batcher, worker, [1, 2])
    assert batcher.waiting_share == 1
    answers[1].cancel()
    await asyncio.sleep(0)
    assert batcher.waiting_share == 0.5
    third = asyncio.ensure_future(batcher.submit(3, "a"))
    await asyncio.sleep(0)
    worker.open.set()
    assert await asyncio.gather(answers[0], answers[2], third) == [0, 4, 6]


async def test_an_item_whose_caller_left_is_not_run() -> None:
    worker = Worker()
    batcher = Batcher(worker.run, workers=1, max_batch=8, max_waiting=8)
    answers = await queue_up(batcher, worker, [1, 2])
    answers[1].cancel()
    worker.open.set()
    await asyncio.gather(*answers, return_exceptions=True)
    assert worker.batches == [[0], [2]]


async def test_a_failing_batch_fails_its_items_and_the_next_one_works() -> None:
    calls = 0

    def run(items: Sequence[int]) -> Sequence[int | Exception]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("engine fault")
        return [] if calls == 2 else list(items)

    batcher = Batcher(run, workers=1, max_batch=8, max_waiting=8)
    with pytest.raises(RuntimeError, match="engine fault"):
        await batcher.submit(1, "a")
    with pytest.raises(InternalError):
        await batcher.submit(1, "a")
    assert await batcher.submit(1, "a") == 1


@settings(max_examples=60, deadline=None)
@given(
    bursts=st.lists(st.lists(st.integers(-3, 50), max_size=12), max_size=8),
    workers=st.integers(1, 3),
    max_batch=st.integers(1, 5),
)
def test_every_item_is_answered_with_its_own_result(bursts: list[list[int]], workers: int, max_batch: int) -> None:
    worker = Worker()

    async def scenario() -> None:
        batcher = Batcher(worker.run, workers=workers, max_batch=max_batch, max_waiting=1000)
        for burst in bursts:
            outcomes = await asyncio.gather(*(batcher.submit(item, "a") for item in burst), return_exceptions=True)
            for item, outcome in zip(burst, outcomes, strict=True):
                assert isinstance(outcome, ImageRejected) if item < 0 else outcome == 2 * item

    asyncio.run(scenario())
    assert all(1 <= len(batch) <= max_batch for batch in worker.batches)
    assert worker.most_busy <= workers
    assert sorted(item for batch in worker.batches for item in batch) == sorted(item for b in bursts for item in b)


@settings(max_examples=60, deadline=None)
@given(
    bursts=st.lists(st.text("abc", max_size=15), max_size=6),
    workers=st.integers(1, 2),
    max_batch=st.integers(1, 4),
    max_waiting=st.integers(1, 6),
    leaving=st.sets(st.integers(0, 60)),
)
def test_nothing_is_lost_or_run_twice_in_a_crowd(
    bursts: list[str], workers: int, max_batch: int, max_waiting: int, leaving: set[int]
) -> None:
    worker = Worker()
    answered: list[int] = []

    async def scenario() -> None:
        batcher = Batcher(worker.run, workers=workers, max_batch=max_batch, max_waiting=max_waiting)
        numbers = itertools.count()
        for burst in bursts:
            tasks = {next(numbers): flow for flow in burst}
            callers = {item: asyncio.ensure_future(batcher.submit(item, flow)) for item, flow in tasks.items()}
            await asyncio.sleep(0)
            for item in leaving & callers.keys():
                callers[item].cancel()
            outcomes = await asyncio.gather(*callers.values(), return_exceptions=True)
            for item, outcome in zip(callers, outcomes, strict=True):
                if isinstance(outcome, int):
                    assert outcome == 2 * item
                    answered.append(item)
                else:
                    assert isinstance(outcome, Overloaded) or item in leaving
        assert batcher.waiting_share == 0

    asyncio.run(scenario())
    run = [item for batch in worker.batches for item in batch]
    assert len(run) == len(set(run))
    assert set(answered) <= set(run)
    assert set(run) - set(answered) <= leaving
