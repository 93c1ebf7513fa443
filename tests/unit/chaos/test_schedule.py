"""The chaos run's plan: everything is struck, in an order and manner that the seed alone decides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.jobs import TRAINING_STAGES
from tests.chaos.runner.schedule import MANNERS, ONLY_WHILE_TRAINING, TRAINING, Manner, Target, plan


@given(seed=st.integers(), kills=st.integers(0, 60), targets=st.sets(st.sampled_from(Target), min_size=1))
def test_each_round_strikes_each_target_once(seed: int, kills: int, targets: set[Target]) -> None:
    strikes = plan(seed, kills, sorted(targets))
    assert [strike.number for strike in strikes] == list(range(1, kills + 1))
    for start in range(0, kills, len(targets)):
        struck = [strike.target for strike in strikes[start : start + len(targets)]]
        assert len(set(struck)) == len(struck)
        assert set(struck) <= targets
    for strike in strikes:
        assert strike.manner in MANNERS[strike.target]
        assert strike.stage in TRAINING or strike.target not in ONLY_WHILE_TRAINING


def test_the_seed_decides() -> None:
    assert plan(1, 50) == plan(1, 50)
    assert plan(1, 50) != plan(2, 50)
    assert plan(1, 50)[:20] == plan(1, 20)


def test_a_long_plan_has_every_stage_and_manner() -> None:
    strikes = plan(1, 600)
    assert {strike.stage for strike in strikes} == set(TRAINING_STAGES)
    assert {strike.manner for strike in strikes} == set(Manner)


def test_no_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="target"):
        plan(1, 1, [])
