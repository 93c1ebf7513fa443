"""What is remembered of the database's answers, and for how long."""

import asyncio

import pytest

from services.contracts.errors import DatabaseUnavailable, NotFound
from services.contracts.ids import TrunkId
from services.inference.predict import resolution
from services.inference.predict.queries import ServedVersion, Target, VersionChoice
from services.inference.predict.resolution import CHECK_EVERY_S, OUTAGE_S, Resolver

LATEST = VersionChoice("flowers")


class Registry:
    """Stands for the database; also the clock."""

    def __init__(self) -> None:
        self.latest: int | None = 1
        self.asked = self.checked = 0
        self.generation = 0
        self.answers = True
        self.now = 100.0

    def publish(self, version: int | None) -> None:
        self.latest = version
        self.generation += 1

    async def look_up(self, choice: VersionChoice) -> Target:
        self.asked += 1
        if not self.answers:
            raise DatabaseUnavailable("it is away")
        latest = self.latest
        await asyncio.sleep(0)
        if latest is None:
            raise NotFound("nothing")
        return Target(ServedVersion(choice.model_name, choice.version or latest, TrunkId("t")))

    async def read_generation(self) -> int:
        self.checked += 1
        if not self.answers:
            raise DatabaseUnavailable("it is away")
        return self.generation


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def resolver(registry: Registry) -> Resolver:
    return Resolver(registry.look_up, registry.read_generation, clock=lambda: registry.now)


async def version_of(resolver: Resolver, choice: VersionChoice = LATEST) -> int:
    return (await resolver.resolve(choice)).main.version


async def test_what_does_not_change_is_asked_for_once(registry: Registry, resolver: Resolver) -> None:
    for _ in range(10):
        assert await asyncio.gather(*(version_of(resolver) for _ in range(5))) == [1] * 5
        registry.now += CHECK_EVERY_S
    assert registry.checked == 10
    assert registry.asked == 5  # those of the first burst


async def test_a_change_is_seen_after_a_second(registry: Registry, resolver: Resolver) -> None:
    assert await version_of(resolver) == 1
    registry.publish(2)
    assert await version_of(resolver) == 1
    registry.now += CHECK_EVERY_S
    assert await version_of(resolver) == 2


async def test_what_was_read_before_a_change_is_not_kept_after_it(registry: Registry, resolver: Resolver) -> None:
    await version_of(resolver, VersionChoice("other"))
    reading = asyncio.create_task(version_of(resolver))
    await asyncio.sleep(0)  # it has read, and has no answer yet
    registry.publish(2)
    registry.now += CHECK_EVERY_S
    await version_of(resolver, VersionChoice("other"))
    assert await reading == 1
    assert await version_of(resolver) == 2


async def test_what_is_known_outlives_the_database_for_a_while(registry: Registry, resolver: Resolver) -> None:
    assert await version_of(resolver) == 1
    registry.answers = False
    registry.now += OUTAGE_S - 1
    assert await version_of(resolver) == 1
    with pytest.raises(DatabaseUnavailable):
        await resolver.resolve(VersionChoice("another"))
    registry.now += CHECK_EVERY_S
    with pytest.raises(DatabaseUnavailable):
        await resolver.resolve(LATEST)
    registry.answers = True
    assert await version_of(resolver) == 1


async def test_a_database_that_hangs_is_not_waited_for(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolution, "CHECK_TIMEOUT_S", 0.01)

    async def never() -> int:
        await asyncio.Event().wait()
        raise AssertionError

    resolver = Resolver(registry.look_up, never, clock=lambda: registry.now)
    assert await version_of(resolver) == 1


async def test_choices_are_kept_apart(resolver: Resolver) -> None:
    choices = [LATEST, VersionChoice("flowers", version=7), VersionChoice("base")]
    assert [(await resolver.resolve(choice)).main.version for choice in choices] == [1, 7, 1]
    assert (await resolver.resolve(choices[2])).main.model_name == "base"


async def test_what_was_not_found_is_asked_again(registry: Registry, resolver: Resolver) -> None:
    registry.latest = None
    with pytest.raises(NotFound):
        await resolver.resolve(LATEST)
    registry.latest = 1
    assert (await resolver.resolve(LATEST)).main.version == 1


async def test_memory_is_bounded(registry: Registry, resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolution, "CACHE_SIZE", 3)
    for number in range(1, 5):
        await resolver.resolve(VersionChoice("flowers", version=number))
    asked = registry.asked
    await resolver.resolve(VersionChoice("flowers", version=4))
    assert registry.asked == asked
    await resolver.resolve(VersionChoice("flowers", version=1))
    assert registry.asked == asked + 1
