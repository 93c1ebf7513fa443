"""Images that are asked for together go together, in bounds, and each gets its own answer."""

import asyncio
from collections.abc import Sequence

import pytest

from services.contracts.errors import Overloaded
from services.inference import courier
from services.inference.courier import Courier, Parcel
from services.inference.pace import Pace


class Road:
    """Calls that wait until they are let through."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.open = asyncio.Event()
        self.failure: Exception | None = None

    async def send(self, parcels: Sequence[Parcel]) -> Sequence[str | Exception]:
        self.calls.append([each.model for each in parcels])
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        return [ValueError(each.model) if each.image == b"bad" else f"to {each.model}" for each in parcels]


def parcel(model: str, image: bytes = b"image") -> Parcel:
    return Parcel(model, 1, 5, image, deadline=0.0)


def make(road: Road, calls_at_once: int = 1, max_waiting: int = 100) -> Courier[str]:
    return Courier(road.send, calls_at_once=calls_at_once, max_waiting=max_waiting)


async def asked(carrier: Courier[str], parcels: Sequence[Parcel]) -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(carrier.ask(each)) for each in parcels]
    await asyncio.sleep(0)  # each has asked
    await asyncio.sleep(0)  # each free call has begun
    return tasks


async def test_what_comes_while_a_call_is_under_way_goes_in_the_next() -> None:
    road = Road()
    carrier = make(road)
    first = await asked(carrier, [parcel("a")])
    later = await asked(carrier, [parcel("b"), parcel("c"), parcel("d")])
    road.open.set()
    assert await asyncio.gather(*first, *later) == ["to a", "to b", "to c", "to d"]
    assert road.calls == [["a"], ["b", "c", "d"]]


async def test_what_comes_together_is_shared_out_to_the_free_calls() -> None:
    road = Road()
    tasks = await asked(make(road, calls_at_once=3), [parcel(str(number)) for number in range(8)])
    assert [len(call) for call in road.calls] == [3, 3, 2]
    road.open.set()
    assert await asyncio.gather(*tasks) == [f"to {number}" for number in range(8)]


async def test_a_batch_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "MAX_BATCH", 3)
    monkeypatch.setattr(courier, "MAX_BATCH_BYTES", 10)
    road = Road()
    carrier = make(road)
    sizes = {"a": 1, "b": 1, "c": 1, "d": 4, "e": 4, "f": 4, "g": 99}
    tasks = await asked(carrier, [parcel("first")])
    tasks += await asked(carrier, [parcel(name, bytes(size)) for name, size in sizes.items()])
    road.open.set()
    await asyncio.gather(*tasks)
    assert road.calls == [["first"], ["a", "b", "c"], ["d", "e", "f"], ["g"]]


async def test_what_may_bring_a_replica_down_goes_alone_and_at_once() -> None:
    road = Road()
    carrier = make(road)
    tasks = await asked(carrier, [parcel("first")])
    tasks += await asked(carrier, [parcel("a"), parcel("c")])
    alone = asyncio.create_task(carrier.ask_alone(parcel("b", b"bad")))
    await asyncio.sleep(0)
    assert road.calls == [["first"], ["b"]]
    road.open.set()
    await asyncio.gather(*tasks)
    with pytest.raises(ValueError, match="b"):
        await alone
    assert road.calls == [["first"], ["b"], ["a", "c"]]


async def test_models_take_turns_and_the_one_that_floods_is_refused() -> None:
    road = Road()
    carrier = make(road, max_waiting=4)
    tasks = await asked(carrier, [parcel("under way")])
    flood = await asked(carrier, [parcel("flood") for _ in range(4)])
    other = await asked(carrier, [parcel("other")])
    road.open.set()
    answers = await asyncio.gather(*tasks, *other, *flood, return_exceptions=True)
    assert answers[1] == "to other"
    assert [isinstance(answer, Overloaded) for answer in answers] == [False] * 5 + [True]
    assert road.calls == [["under way"], ["flood", "other", "flood", "flood"]]


async def test_an_images_error_is_its_own_and_a_calls_is_everyones() -> None:
    road = Road()
    road.open.set()
    carrier = make(road)
    one, other = await asyncio.gather(
        carrier.ask(parcel("a", b"bad")), carrier.ask(parcel("b")), return_exceptions=True
    )
    assert isinstance(one, ValueError)
    assert other == "to b"
    road.failure = ConnectionError("gone")
    answers = await asyncio.gather(*(carrier.ask(parcel(name)) for name in "cd"), return_exceptions=True)
    assert answers == [road.failure] * 2
    road.failure = None
    assert await carrier.ask(parcel("e")) == "to e"


async def test_more_than_may_wait_are_refused_at_once() -> None:
    road = Road()
    carrier = make(road, max_waiting=2)
    tasks = await asked(carrier, [parcel("under way")])
    tasks += await asked(carrier, [parcel("a"), parcel("b")])
    with pytest.raises(Overloaded):
        await carrier.ask(parcel("a"))
    road.open.set()
    assert len(await asyncio.gather(*tasks)) == 3


def has_room(carrier: Courier[str], model: str) -> bool:
    try:
        with carrier.place_for(model):
            return True
    except Overloaded:
        return False


async def test_it_says_beforehand_who_would_be_refused() -> None:
    road = Road()
    carrier = make(road, max_waiting=3)
    tasks = await asked(carrier, [parcel("under way")])
    tasks += await asked(carrier, [parcel("a"), parcel("a")])
    assert has_room(carrier, "a")
    tasks += await asked(carrier, [parcel("a")])
    assert not has_room(carrier, "a")
    assert has_room(carrier, "b")  # it has less than its share
    road.open.set()
    await asyncio.gather(*tasks)
    assert has_room(carrier, "a")


async def test_places_are_kept_for_those_who_are_going_to_ask() -> None:
    road = Road()
    carrier = make(road, max_waiting=3)
    tasks = await asked(carrier, [parcel("under way")])
    tasks += await asked(carrier, [parcel("a"), parcel("a")])
    with carrier.place_for("a"):
        assert not has_room(carrier, "a")
        assert has_room(carrier, "b")
        with carrier.place_for("b"):
            assert not has_room(carrier, "b")
        assert has_room(carrier, "b")
    assert has_room(carrier, "a")
    with carrier.place_for("a"):
        tasks += await asked(carrier, [parcel("a")])
        assert carrier.waiting_count == 3
    road.open.set()
    assert len(await asyncio.gather(*tasks)) == 4
    assert has_room(carrier, "a")


async def test_a_place_lapses_where_the_image_takes_long_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "PLACE_S", 0.01)
    road = Road()
    carrier = make(road, max_waiting=1)
    with carrier.place_for("a"):
        assert not has_room(carrier, "a")
        async with asyncio.timeout(10):
            while not has_room(carrier, "a"):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    with carrier.place_for("a"):
        assert not has_room(carrier, "a")
        courier.give_up_place()
        assert has_room(carrier, "a")


@pytest.mark.parametrize(
    ("per_s", "room"), [(1.0, courier.MIN_INSIDE - 1), (400.0, round(400 * courier.STAY_S) - 1), (9999.0, 200)]
)
async def test_so_many_may_wait_as_are_answered_in_time(
    monkeypatch: pytest.MonkeyPatch, per_s: float, room: int
) -> None:
    class Steady(Pace):
        @property
        def per_s(self) -> float | None:
            return per_s

    monkeypatch.setattr(courier, "Pace", Steady)
    road = Road()
    road.open.set()
    carrier = make(road, max_waiting=200)
    await carrier.ask(parcel("first"))
    road.open.clear()
    tasks = await asked(carrier, [parcel("under way")])
    answers = [asyncio.create_task(carrier.ask(parcel("a"))) for _ in range(300)]
    await asyncio.sleep(0)
    assert sum(isinstance(task.exception(), Overloaded) for task in answers if task.done()) == 300 - room
    road.open.set()
    await asyncio.gather(*tasks, *answers, return_exceptions=True)


async def test_whoever_has_gone_away_is_left_out() -> None:
    road = Road()
    carrier = make(road)
    tasks = await asked(carrier, [parcel("under way")])
    gone, staying = await asked(carrier, [parcel("gone"), parcel("staying")])
    gone.cancel()
    await asyncio.wait([gone])
    road.open.set()
    assert await staying == "to staying"
    await asyncio.gather(*tasks)
    assert road.calls == [["under way"], ["staying"]]


async def test_closing_gives_up_what_is_under_way() -> None:
    road = Road()
    carrier = make(road)
    (task,) = await asked(carrier, [parcel("a")])
    await carrier.aclose()
    with pytest.raises(asyncio.CancelledError):
        await task
