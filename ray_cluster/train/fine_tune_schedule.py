"""What happens at which step of fine-tuning: pure functions of the seed, the epoch, and an image's place.

Philox (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011) is keyed by what a number is for and counts
through what it is drawn for, and only its raw output is used: NumPy's distributions may change between releases, that
may not.

Array axes: N image, F pooled feature.
"""

import math
from enum import IntEnum

import numpy as np
import numpy.typing as npt

WARM_UP_SHARE = 0.1
"""Of all steps: the learning rate rises from 0 meanwhile."""


class _Purpose(IntEnum):
    ORDER = 1
    VIEW = 2
    DROPOUT = 3


def order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """The images' places in the epoch (counted from 0), a permutation of 0 to `count` - 1."""
    return np.argsort(_raw(_Purpose.ORDER, seed, epoch, 0, count), kind="stable")


def views(seed: int, epoch: int, count: int, view_count: int) -> npt.NDArray[np.int64]:
    """Which of its views each image is seen in, [N] with 0 to `view_count` - 1."""
    return (_raw(_Purpose.VIEW, seed, epoch, 0, count) % np.uint64(view_count)).astype(np.int64)


def kept_features(seed: int, epoch: int, image: int, feature_dim: int, dropout: float) -> npt.NDArray[np.float32]:
    """Inverted dropout of one image's pooled features, [F]: 0, or 1 / (1 - dropout)."""
    if dropout == 0:
        return np.ones(feature_dim, np.float32)
    raw_F = _raw(_Purpose.DROPOUT, seed, epoch, image, feature_dim)
    kept_F = raw_F >= np.uint64(int(dropout * 2**64))
    return (kept_F / (1 - dropout)).astype(np.float32)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Of a step counted from 0, of `steps`: a linear warm-up, then a cosine to 0 (Loshchilov and Hutter, SGDR, 2016,
    section 3, without restarts)."""
    warm_up = max(1, round(WARM_UP_SHARE * steps))
    if step < warm_up:
        return peak * (step + 1) / (warm_up + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """The last step of an epoch may have fewer images."""
    return (count + batch_size - 1) // batch_size


def _raw(purpose: _Purpose, seed: int, epoch: int, block: int, count: int) -> npt.NDArray[np.uint64]:
    key = np.array([seed, (int(purpose) << 32) | epoch], np.uint64)
    counter = np.array([0, 0, block, 0], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)
