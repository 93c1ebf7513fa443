"""The numbers of a model's report."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_cluster.train import evaluate
from services.contracts.datasets import ImageRecord, Split

LABELS = ["cat", "dog", "eel"]


def test_a_report_worked_out_by_hand() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]], np.float32)
    report = evaluate.evaluate(
        "test", LABELS, np.array([0, 1, 1, 1]), probabilities, np.eye(3, dtype=np.float32)[[0, 0, 1, 1]]
    )
    assert report.accuracy == 0.75
    assert report.calibration_error == pytest.approx(0.325)  # bins at 0.8, 0.6 and 0.7: gaps 0.4, 0.6 and 0.3
    assert report.uncalibrated_error == pytest.approx(0.25)  # all sure, one of four wrong
    assert report.confusion_matrix == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert report.loss == pytest.approx(-np.log([0.8, 0.3, 0.7, 0.8]).mean(), rel=1e-6)
    cat, dog, eel = report.classes
    assert (cat.precision, cat.recall, cat.support) == (0.5, 1.0, 1)
    assert (dog.precision, dog.recall) == (1.0, pytest.approx(2 / 3))
    assert dog.f1 == pytest.approx(0.8)
    assert (eel.precision, eel.recall, eel.f1, eel.support) == (None, None, None, 0)


def test_without_a_temperature_nothing_is_said_of_what_was_before_it() -> None:
    report = evaluate.evaluate("test", ["cat", "dog"], np.array([0, 1]), np.eye(2, dtype=np.float32), None)
    assert (report.accuracy, report.uncalibrated_error) == (1.0, None)


def test_calibration_is_the_gap_between_confidence_and_accuracy() -> None:
    confident_and_wrong_half_the_time = evaluate.calibration_error(np.full(10, 0.95), np.arange(10) % 2 == 0)
    assert confident_and_wrong_half_the_time == pytest.approx(0.45)
    assert evaluate.calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0


@given(st.integers(1, 50), st.integers(0, 10_000))
def test_the_matrix_counts_every_image(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(3), count).astype(np.float32)
    report = evaluate.evaluate("test", LABELS, rng.integers(0, 3, count), probabilities, probabilities)
    matrix = np.array(report.confusion_matrix)
    assert matrix.sum() == report.image_count == count
    assert np.trace(matrix) / count == pytest.approx(report.accuracy)
    assert 0 <= report.calibration_error <= 1


def test_prediction_lines_have_the_best_labels_first() -> None:
    record = ImageRecord(
        path="eel/Ä.jpg", sha256="0" * 64, size_bytes=1, width=1, height=1, label="eel", split=Split.TEST
    )
    (line,) = evaluate.prediction_lines([record], LABELS, np.array([[0.2, 0.5, 0.3]], np.float32))
    read = json.loads(line)
    assert (read["path"], read["label"]) == ("eel/Ä.jpg", "eel")
    assert [each["label"] for each in read["predictions"]] == ["dog", "eel", "cat"]
