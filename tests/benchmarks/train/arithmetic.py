"""What the pairs compute from their measurements. Pure."""

from collections.abc import Sequence
from statistics import median


def epochs_total_s(epochs_s: Sequence[float], count: int) -> float:
    """What so many epochs take: those that were measured, and the rest at the median of all but the first.

    The first epoch traces and warms up. `epochs_s` has at least two.
    """
    measured = list(epochs_s[:count])
    return sum(measured) + (count - len(measured)) * median(epochs_s[1:])


def speedup(ours_s: Sequence[float], theirs_s: Sequence[float]) -> float:
    """How many times as fast ours is: the median of the rounds' ratios, each of runs that followed each other."""
    return median(theirs / ours for ours, theirs in zip(ours_s, theirs_s, strict=True))


def points(share: float) -> float:
    """A share from 0 to 1 in points, 0 to 100."""
    return 100 * share
