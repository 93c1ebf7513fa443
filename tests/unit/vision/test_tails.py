"""Array axes: B batch, D feature, K class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from ray_cluster.vision.tails import Tail
from services.contracts.errors import CorruptObject


def tail_of(seed: int = 0, features: int = 32, classes: int = 5) -> Tail:
    rng = np.random.default_rng(seed)
    return Tail(rng.normal(size=(features, classes)).astype(np.float32), rng.normal(size=classes).astype(np.float32))


def features_of(count: int, seed: int = 1, features: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, features)).astype(np.float32)


def test_logits_are_the_linear_map() -> None:
    tail, features_BD = tail_of(), features_of(7)
    expected = features_BD.astype(np.float64) @ tail.kernel_DK + tail.bias_K
    assert tail.logits(features_BD).dtype == np.float32
    np.testing.assert_allclose(tail.logits(features_BD), expected, rtol=1e-4, atol=1e-5)


def test_probabilities_are_a_softmax_and_survive_large_logits() -> None:
    tail, features_BD = tail_of(), features_of(7) * 1e4
    probabilities_BK = tail.probabilities(features_BD)
    assert probabilities_BK.dtype == np.float32
    assert np.isfinite(probabilities_BK).all()
    np.testing.assert_allclose(probabilities_BK.sum(axis=1), 1, atol=1e-6)
    assert (probabilities_BK.argmax(axis=1) == tail.logits(features_BD).argmax(axis=1)).all()


@given(st.integers(1, 40), st.integers(1, 3))
def test_an_answer_does_not_depend_on_its_neighbours(count: int, seed: int) -> None:
    tail, features_BD = tail_of(features=128, classes=10), features_of(count, seed, features=128)
    together = tail.probabilities(features_BD)
    for row in range(count):
        assert tail.probabilities(features_BD[row : row + 1]).tobytes() == together[row : row + 1].tobytes()


def test_no_images_give_no_rows() -> None:
    assert tail_of().probabilities(features_of(0)).shape == (0, 5)


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        tail_of().logits(features_of(2, features=31))


def test_bytes_come_back_as_they_were() -> None:
    tail = tail_of()
    again = Tail.from_bytes(tail.to_bytes())
    assert np.array_equal(again.kernel_DK, tail.kernel_DK)
    assert np.array_equal(again.bias_K, tail.bias_K)
    assert again.to_bytes() == tail.to_bytes()
    assert set(load(tail.to_bytes())) == {"kernel", "bias"}


def test_the_hash_follows_the_numbers_and_nothing_else() -> None:
    tail = tail_of()
    fortran = Tail(np.asfortranarray(tail.kernel_DK), tail.bias_K)
    assert Tail.from_bytes(tail.to_bytes()).sha256() == tail.sha256() == fortran.sha256()
    assert fortran.to_bytes() == tail.to_bytes()
    nudged = tail.kernel_DK.copy()
    nudged[3, 2] = np.nextafter(nudged[3, 2], np.float32(9))
    assert Tail(nudged, tail.bias_K).sha256() != tail.sha256()
    square = tail_of(features=5)
    assert Tail(square.kernel_DK.T.copy(), square.bias_K).sha256() != square.sha256()


def test_the_hash_is_fixed() -> None:
    """Published manifests carry it."""
    tail = Tail(np.arange(6, dtype=np.float32).reshape(3, 2), np.array([0.5, -0.5], np.float32))
    assert tail.sha256() == "5a612ef3b203e689ae9924c9eba7e74058a758297c3ee5fae2cb41d2edeef8d0"


@pytest.mark.parametrize(
    "tensors",
    [
        {"kernel": np.zeros((4, 2), np.float32)},
        {"kernel": np.zeros((4, 2), np.float32), "bias": np.zeros(3, np.float32)},
        {"kernel": np.zeros((4, 2), np.float64), "bias": np.zeros(2, np.float64)},
        {"kernel": np.zeros(4, np.float32), "bias": np.zeros(2, np.float32)},
        {"kernel": np.zeros((4, 2), np.float32), "bias": np.zeros(2, np.float32), "more": np.zeros(1, np.float32)},
    ],
)
def test_other_tensors_are_corrupt(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(CorruptObject):
        Tail.from_bytes(save(tensors))


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_damaged_bytes_are_corrupt_or_another_tail(where: int, junk: bytes) -> None:
    data = tail_of().to_bytes()
    start = where % len(data)
    damaged = data[:start] + junk + data[start + len(junk) :]
    try:
        assert Tail.from_bytes(damaged).kernel_DK.dtype == np.float32
    except CorruptObject:
        return


@pytest.mark.parametrize("size", [0, 1, 8, 40, 200])
def test_truncated_bytes_are_corrupt(size: int) -> None:
    with pytest.raises(CorruptObject):
        Tail.from_bytes(tail_of().to_bytes()[:size])
