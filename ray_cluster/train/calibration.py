"""How sure a head should be of what it says: temperature scaling. NumPy only.

Source: C. Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2. Dividing all logits by one number
changes no answer, only how probable it is said to be.

Array axes: N image, K class.
"""

import math

import numpy as np
import numpy.typing as npt

LARGEST_TEMPERATURE = 4.0
PRIOR_SPREAD = 0.5
"""Standard deviation of the temperature's logarithm before any image was seen. A few images, all of them right, would
else say that the head may be as sure as it likes."""
_ROUNDS = 4
_STEPS = 16


def fit_temperature(logits_NK: npt.NDArray[np.float32], labels_N: npt.NDArray[np.int64]) -> float:
    """What to divide the logits by, from 1 / `LARGEST_TEMPERATURE` to that.

    The images must not be among those that the logits' head was trained on. Minimises their cross-entropy, with a prior
    that keeps it near 1 while they are few, by a search over ever finer grids: equal arguments give equal bits.
    """
    exact_NK = logits_NK.astype(np.float64)
    low, high = -math.log(LARGEST_TEMPERATURE), math.log(LARGEST_TEMPERATURE)
    best = 0.0
    for _ in range(_ROUNDS):
        grid = np.linspace(low, high, _STEPS + 1)
        best = float(min(grid, key=lambda log_temperature: _cost(exact_NK, labels_N, float(log_temperature))))
        step = (high - low) / _STEPS
        low, high = max(low, best - step), min(high, best + step)
    return math.exp(best)


def _cost(logits_NK: npt.NDArray[np.float64], labels_N: npt.NDArray[np.int64], log_temperature: float) -> float:
    """In nats over all images."""
    scaled_NK = logits_NK * math.exp(-log_temperature)
    scaled_NK -= scaled_NK.max(axis=1, keepdims=True)
    of_truth_N = scaled_NK[np.arange(len(labels_N)), labels_N]
    losses_N = np.log(np.exp(scaled_NK).sum(axis=1)) - of_truth_N
    return float(losses_N.sum()) + (log_temperature / PRIOR_SPREAD) ** 2 / 2
