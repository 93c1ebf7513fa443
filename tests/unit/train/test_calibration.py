"""The temperature: found where it is known, modest where little is known, and of no effect on the answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_cluster.train import calibration
from ray_cluster.train.evaluate import calibration_error


def sampled(seed: int, temperature: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too sure by the factor, and labels drawn from what they should say."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 5))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return (logits * temperature).astype(np.float32), labels


def error_at(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    scaled = np.exp(logits.astype(np.float64) / temperature)
    probabilities = scaled / scaled.sum(axis=1, keepdims=True)
    return calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 3.0])
def test_finds_the_temperature_that_the_labels_were_drawn_at(temperature: float) -> None:
    logits, labels = sampled(1, temperature, 4000)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_lowers_the_calibration_error_on_images_it_has_not_seen() -> None:
    temperature = calibration.fit_temperature(*sampled(2, 2.5, 300))
    logits, labels = sampled(3, 2.5, 2000)
    assert error_at(logits, labels, temperature) < error_at(logits, labels, 1.0) / 3


def test_a_few_right_answers_do_not_make_it_sure_of_everything() -> None:
    logits = np.eye(3, dtype=np.float32)
    assert 0.5 < calibration.fit_temperature(logits, np.arange(3)) < 1


@given(st.integers(0, 1000), st.integers(1, 30))
def test_bounded_and_repeatable(seed: int, count: int) -> None:
    logits, labels = sampled(seed, 1.5, count)
    temperature = calibration.fit_temperature(logits, labels)
    assert 1 / calibration.LARGEST_TEMPERATURE <= temperature <= calibration.LARGEST_TEMPERATURE
    assert calibration.fit_temperature(logits.copy(), labels.copy()) == temperature


def test_no_image_at_all_says_nothing() -> None:
    assert calibration.fit_temperature(np.zeros((0, 3), np.float32), np.zeros(0, np.int64)) == 1.0
