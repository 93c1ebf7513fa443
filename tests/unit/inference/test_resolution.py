"""What is remembered of the database's answers, and for how long."""

import pytest

from services.contracts.errors import NotFound
from services.contracts.ids import TrunkId
from services.inference.predict.queries import ServedVersion, Target, VersionChoice
from services.inference.predict.resolution import CACHE_SIZE, Resolver

LATEST = VersionChoice("flowers")


class Registry:
    """Stands for the database; also the clock."""

    def __init__(self) -> None:
        self.latest: int | None = 1
        self.asked = 0
        self.now = 100.0

    async def look_up(self, choice: VersionChoice) -> Target:
        self.asked += 1
        if self.latest is None:
            raise NotFound("nothing")
        return Target(ServedVersion(choice.model_name, choice.version or self.latest, TrunkId("t")))


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def resolver(registry: Registry) -> Resolver:
    return Resolver(registry.look_up, clock=lambda: registry.now)


async def test_a_burst_asks_once_and_a_new_version_is_seen_after_a_second(
    registry: Registry, resolver: Resolver
) -> None:
    assert [(await resolver.resolve(LATEST)).main.version for _ in range(50)] == [1] * 50
    assert registry.asked == 1
    registry.latest = 2
    registry.now += 1
    assert (await resolver.resolve(LATEST)).main.version == 2


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


async def test_memory_is_bounded(registry: Registry, resolver: Resolver) -> None:
    for number in range(CACHE_SIZE + 1):
        await resolver.resolve(VersionChoice("flowers", version=number + 1))
    asked = registry.asked
    await resolver.resolve(VersionChoice("flowers", version=CACHE_SIZE + 1))
    assert registry.asked == asked
    await resolver.resolve(VersionChoice("flowers", version=1))
    assert registry.asked == asked + 1
