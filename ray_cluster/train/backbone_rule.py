"""Which backbone a job takes: the cheapest one whose accuracy is within one standard error of the best.

Source for the rule: L. Breiman, J. Friedman, R. Olshen and C. Stone, Classification and Regression Trees, 1984, section
3.4.3. For the standard error of few images, of which all may be right: A. Agresti and B. Coull, Approximate Is Better
than "Exact" for Interval Estimation of Binomial Proportions, 1998, which adds two right and two wrong answers.

Pure, and of no measured time: an attempt after a lost one comes to the same choice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ray_cluster.train.probe import ProbeScore
from services.contracts.backbones import BackboneName, multiply_adds
from services.contracts.jobs import BackboneChoice, LeftOutBackbone, ProbedBackbone, Weights

_ADDED_RIGHT = 2
_ADDED = 4


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate whose weights could be had, and its score."""

    backbone: BackboneName
    weights: Weights
    image_size: int
    feature_dim: int
    score: ProbeScore

    @property
    def cost(self) -> tuple[int, int]:
        """What is compared: multiplications with additions for an image, and between equal ones the features."""
        return multiply_adds(self.backbone, self.image_size), self.feature_dim

    @property
    def accuracy(self) -> float:
        """0 to 1."""
        return self.score.right_count / self.score.image_count

    @property
    def standard_error(self) -> float:
        """Of the accuracy; never 0."""
        count = self.score.image_count + _ADDED
        share = (self.score.right_count + _ADDED_RIGHT) / count
        return math.sqrt(share * (1 - share) / count)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.backbone} at {self.image_size} px"


def choose(
    scored: Sequence[Scored], left_out: Sequence[LeftOutBackbone], *, class_count: int, fold_count: int
) -> BackboneChoice:
    """The choice among at least one candidate, all scored on the same images.

    Between candidates of equal cost the more accurate one is taken, then the one of the lower loss, then the first.
    """
    best = min(scored, key=lambda each: (-each.accuracy, each.score.loss, each.cost))
    able = [each for each in scored if each.accuracy >= best.accuracy - best.standard_error]
    chosen = min(able, key=lambda each: (each.cost, -each.accuracy, each.score.loss))
    return BackboneChoice(
        candidates=[_row(each, best, is_chosen=each is chosen) for each in scored],
        left_out=list(left_out),
        image_count=best.score.image_count,
        class_count=class_count,
        fold_count=fold_count,
        reason=_reason(chosen, best, len(able), len(scored)),
    )


def _row(each: Scored, best: Scored, *, is_chosen: bool) -> ProbedBackbone:
    return ProbedBackbone(
        backbone=each.backbone,
        weights=each.weights,
        image_size=each.image_size,
        feature_dim=each.feature_dim,
        multiply_adds=each.cost[0],
        accuracy=each.accuracy,
        standard_error=each.standard_error,
        loss=each.score.loss,
        accuracy_difference=each.accuracy - best.accuracy,
        loss_difference=each.score.loss - best.score.loss,
        chosen=is_chosen,
    )


def _reason(chosen: Scored, best: Scored, able_count: int, count: int) -> str:
    if count == 1:
        return f"{chosen.name} is the only candidate that could be probed (accuracy {chosen.accuracy:.1%})"
    error = f"one standard error ({100 * best.standard_error:.1f} points)"
    took = f"{chosen.name} ({chosen.accuracy:.1%})"
    if able_count == 1:
        return f"{took} is the most accurate; none is within {error} of it"
    if chosen is best:
        return f"{took} is the most accurate, and the cheapest of {able_count} within {error}"
    return (
        f"{took} is the cheapest of {able_count} within {error} of the most accurate, {best.name} ({best.accuracy:.1%})"
    )
