"""Order, views, dropout and learning rate are functions of the seed, the epoch and the image's place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_cluster.train import fine_tune_schedule as schedule

seeds = st.integers(0, 2**31 - 1)
epochs = st.integers(0, 10_000)


@given(seed=seeds, epoch=epochs, count=st.integers(1, 300))
def test_an_epoch_sees_every_image_once(seed: int, epoch: int, count: int) -> None:
    order_N = schedule.order(seed, epoch, count)
    assert sorted(order_N) == list(range(count))
    assert order_N.tolist() == schedule.order(seed, epoch, count).tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(schedule.order(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_does_not_change_between_releases() -> None:
    assert schedule.order(7, 3, 10).tolist() == ORDER
    assert schedule.views(7, 3, 10, 2).tolist() == VIEWS


ORDER = [3, 9, 2, 8, 1, 5, 7, 6, 4, 0]
VIEWS = [0, 0, 0, 1, 1, 0, 1, 1, 0, 0]


@given(seed=seeds, epoch=epochs)
def test_views_are_drawn_evenly(seed: int, epoch: int) -> None:
    views_N = schedule.views(seed, epoch, 1000, 2)
    assert set(views_N) == {0, 1}
    assert 380 < views_N.sum() < 620
    assert not schedule.views(seed, epoch, 1000, 1).any()


def test_dropout_keeps_the_mean_and_differs_by_image() -> None:
    kept = [schedule.kept_features(1, 2, image, 4000, 0.25) for image in range(2)]
    assert set(np.unique(kept[0])) == {np.float32(0), np.float32(1 / 0.75)}
    assert kept[0].mean() == pytest.approx(1, abs=0.05)
    assert (kept[0] != kept[1]).any()
    assert (schedule.kept_features(1, 2, 0, 8, 0) == 1).all()


@given(steps=st.integers(1, 5000), peak=st.floats(1e-6, 1))
@settings(deadline=None)
def test_the_rate_rises_then_falls_to_nearly_nothing(steps: int, peak: float) -> None:
    rates = [schedule.learning_rate(step, steps, peak) for step in range(steps)]
    top = int(np.argmax(rates))
    assert all(0 < rate <= peak for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if steps >= 20:
        assert rates[-1] < 0.05 * peak < rates[top]


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(1, 32, 1), (32, 32, 1), (33, 32, 2), (64, 32, 2)])
def test_no_image_is_left_out_of_an_epoch(count: int, batch_size: int, steps: int) -> None:
    assert schedule.steps_per_epoch(count, batch_size) == steps
