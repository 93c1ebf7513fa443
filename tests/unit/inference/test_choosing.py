"""Which version of an alias answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.ids import TrunkId
from services.inference.predict.choosing import choose, draw
from services.inference.predict.queries import ServedVersion, Target, VersionChoice

MAIN, OTHER = (ServedVersion("flowers", version, TrunkId("t")) for version in (1, 2))
ALIAS = VersionChoice("flowers", alias="production")
REQUESTS = [f"request-{number}" for number in range(4000)]


def split(weight: float) -> Target:
    return Target(MAIN, split=OTHER, split_weight=weight)


def taken(weight: float, choice: VersionChoice = ALIAS) -> set[str]:
    """The requests that the second version answers."""
    return {each for each in REQUESTS if choose(split(weight), choice, each).served is OTHER}


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5, 0.9])
def test_the_second_version_answers_its_share(weight: float) -> None:
    # Four standard deviations of a binomial; the draw is fixed, so this never changes by itself.
    allowed = 4 * (weight * (1 - weight) * len(REQUESTS)) ** 0.5
    assert len(taken(weight)) == pytest.approx(weight * len(REQUESTS), abs=allowed)


def test_the_same_request_gets_the_same_version_and_a_growing_split_only_takes_over() -> None:
    assert taken(0.2) == taken(0.2)
    assert taken(0.1) < taken(0.2) < taken(0.7)


def test_models_and_aliases_draw_independently() -> None:
    for other in (VersionChoice("pets", alias="production"), VersionChoice("flowers", alias="canary")):
        both = len(taken(0.5) & taken(0.5, other))
        assert both == pytest.approx(len(REQUESTS) / 4, rel=0.15)


@given(st.text(max_size=30))
def test_a_draw_is_below_one(request_id: str) -> None:
    assert 0 <= draw(ALIAS, request_id) < 1


def test_only_requests_by_an_alias_with_two_versions_are_measured() -> None:
    assert choose(Target(MAIN), ALIAS, "r").alias is None
    halves = {choose(split(0.5), ALIAS, each).role for each in REQUESTS[:50]}
    assert halves == {"main", "split"}
    assert choose(split(0.5), ALIAS, "r").alias == "production"


def test_a_shadow_never_answers() -> None:
    chosen = {choose(Target(MAIN, shadow=OTHER), ALIAS, each) for each in REQUESTS[:200]}
    (only,) = chosen
    assert (only.served, only.shadow, only.alias, only.role) == (MAIN, OTHER, "production", "main")
