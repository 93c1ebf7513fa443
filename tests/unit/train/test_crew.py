"""Whoever computes them, shards' results come in the shards' order; a helper that is lost is not missed."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError

from ray_cluster.train.crew import Crew
from ray_cluster.train.shards import Quantity, ShardResult, ShardTask, compute_here

TASK = ShardTask(Quantity.GRADIENT, "train", np.arange(3.0))


def compute(task: ShardTask, shard: int) -> ShardResult:
    return (task.params_P * shard,)


@dataclass
class Helper:
    """Stands in for a trainer's handle: calls answer at once, or with an error."""

    error: RayError | None = None
    asked: list[list[int]] = field(default_factory=list[list[int]])

    @property
    def compute_shards(self) -> "Helper":
        return self

    def remote(
        self, work: str, quantity: Quantity, rows: str, params: object, shards: list[int]
    ) -> Callable[[], list[ShardResult]]:
        assert (work, quantity, rows) == ("job", TASK.quantity, TASK.rows)
        assert params is TASK.params_P
        self.asked.append(shards)

        def answer() -> list[ShardResult]:
            if self.error is not None:
                raise self.error
            return [compute(TASK, shard) for shard in shards]

        return answer


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(answer: Callable[[], list[ShardResult]], timeout: float) -> list[ShardResult]:
        return answer()

    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "get", get)


def assert_in_order(results: list[ShardResult], count: int) -> None:
    expected = compute_here(TASK, count, compute)
    assert len(results) == count
    for (result,), (wanted,) in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("helpers", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_results_are_in_the_shards_order(helpers: int, count: int) -> None:
    crew, hands = Crew("job"), [Helper() for _ in range(helpers)]
    crew.set(hands)
    own: list[int] = []

    def compute_and_note(task: ShardTask, shard: int) -> ShardResult:
        own.append(shard)
        return compute(task, shard)

    assert_in_order(crew(TASK, count, compute_and_note), count)
    shared_out = own + [shard for hand in hands for shards in hand.asked for shard in shards]
    assert sorted(shared_out) == list(range(count))


@pytest.mark.parametrize("error", [ActorDiedError(), GetTimeoutError("silent")])
def test_a_helper_that_is_lost_is_left_out(error: RayError) -> None:
    crew, lost, stays = Crew("job"), Helper(error), Helper()
    crew.set([lost, stays])
    assert_in_order(crew(TASK, 6, compute), 6)
    assert_in_order(crew(TASK, 6, compute), 6)
    assert [len(lost.asked), len(stays.asked)] == [1, 2]
