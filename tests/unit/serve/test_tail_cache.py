"""The tail cache: one load per key, a byte budget that holds, failures that are not remembered."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_cluster.serve.tail_cache import TailCache
from services.contracts.errors import NotFound


@dataclass(frozen=True)
class Entry:
    key: str
    size_bytes: int


class Bucket:
    """Loads entries of given sizes when the test lets it, and counts."""

    def __init__(self, sizes: dict[str, int], *, held: bool = False) -> None:
        self.sizes = sizes
        self.loads: list[str] = []
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        if not held:
            self.gate.set()

    async def load(self, key: str) -> Entry:
        self.loads.append(key)
        self.started.set()
        await self.gate.wait()
        if key not in self.sizes:
            raise NotFound(f"no {key}")
        return Entry(key, self.sizes[key])


async def test_callers_of_one_key_share_one_load() -> None:
    bucket = Bucket({"a": 1}, held=True)
    cache = TailCache(bucket.load, 10)
    callers = [asyncio.ensure_future(cache.get("a")) for _ in range(20)]
    await bucket.started.wait()
    bucket.gate.set()
    entries = await asyncio.gather(*callers)
    assert bucket.loads == ["a"]
    assert all(entry is entries[0] for entry in entries)
    assert await cache.get("a") is entries[0]
    assert bucket.loads == ["a"]


async def test_a_slow_load_holds_up_no_other_key() -> None:
    slow = asyncio.Event()

    async def load(key: str) -> Entry:
        if key == "slow":
            await slow.wait()
        return Entry(key, 1)

    cache = TailCache(load, 10)
    waiting = asyncio.ensure_future(cache.get("slow"))
    assert (await cache.get("fast")).key == "fast"
    assert not waiting.done()
    slow.set()
    assert (await waiting).key == "slow"


async def test_a_caller_who_leaves_does_not_stop_the_load() -> None:
    bucket = Bucket({"a": 1}, held=True)
    cache = TailCache(bucket.load, 10)
    leaver, stayer = (asyncio.ensure_future(cache.get("a")) for _ in range(2))
    await bucket.started.wait()
    leaver.cancel()
    bucket.gate.set()
    assert (await stayer).key == "a"
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert bucket.loads == ["a"]


async def test_a_failure_reaches_everyone_who_waited_and_is_not_remembered() -> None:
    bucket = Bucket({}, held=True)
    cache = TailCache(bucket.load, 10)
    callers = [asyncio.ensure_future(cache.get("a")) for _ in range(3)]
    await bucket.started.wait()
    bucket.gate.set()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [NotFound] * 3
    bucket.sizes["a"] = 1
    assert (await cache.get("a")).key == "a"


async def test_the_least_recently_used_goes_first() -> None:
    bucket = Bucket({"a": 4, "b": 4, "c": 4})
    cache = TailCache(bucket.load, 10)
    for key in ("a", "b", "a", "c"):
        await cache.get(key)
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)


async def test_an_entry_larger_than_the_budget_is_served_and_drops_nothing() -> None:
    bucket = Bucket({"small": 3, "huge": 11})
    cache = TailCache(bucket.load, 10)
    await cache.get("small")
    assert (await cache.get("huge")).size_bytes == 11
    assert "small" in cache
    assert "huge" not in cache
    assert cache.used_bytes == 3


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        TailCache(Bucket({}).load, -1)


@settings(max_examples=200, deadline=None)
@given(
    budget=st.integers(0, 40),
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    data=st.data(),
)
def test_the_budget_always_holds_and_the_cache_is_an_lru(budget: int, sizes: list[int], data: st.DataObject) -> None:
    """Against a model of an LRU; requests come in bursts whose loads end in any order the loop likes."""
    names = [f"k{i}" for i in range(len(sizes))]
    bursts = data.draw(st.lists(st.lists(st.sampled_from([*names, "missing"]), min_size=1, max_size=6), max_size=12))

    async def scenario() -> None:
        bucket = Bucket(dict(zip(names, sizes, strict=True)))
        cache = TailCache(bucket.load, budget)
        for burst in bursts:
            known = set(cache_keys(cache, names))
            before = len(bucket.loads)
            outcomes = await asyncio.gather(*(cache.get(key) for key in burst), return_exceptions=True)
            for key, outcome in zip(burst, outcomes, strict=True):
                assert isinstance(outcome, NotFound) if key == "missing" else outcome == Entry(key, bucket.sizes[key])
            kept = cache_keys(cache, names)
            assert cache.used_bytes == sum(bucket.sizes[key] for key in kept) <= budget
            assert sorted(bucket.loads[before:]) == sorted(set(burst) - known)

        lru: OrderedDict[str, int] = OrderedDict()
        cache = TailCache(bucket.load, budget)
        for key in (key for burst in bursts for key in burst if key != "missing"):
            await cache.get(key)
            size = bucket.sizes[key]
            if key in lru:
                lru.move_to_end(key)
            elif size <= budget:
                while sum(lru.values()) + size > budget:
                    lru.popitem(last=False)
                lru[key] = size
            assert cache_keys(cache, names) == sorted(lru)
            assert cache.used_bytes == sum(lru.values()) <= budget

    asyncio.run(scenario())


def cache_keys(cache: TailCache[str, Entry], names: list[str]) -> list[str]:
    return [name for name in names if name in cache]
