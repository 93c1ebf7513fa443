"""A job that tries many weight decays against one that is told which: what the search costs."""

from dataclasses import asdict
from statistics import median

from ray_cluster.train.head_recipe import WEIGHT_DECAYS
from services.contracts.jobs import Stage
from tests.benchmarks.report import Figure, Finding
from tests.benchmarks.train.bench import Bench
from tests.benchmarks.train.product import JobRun


class SearchPair:
    """Both on features that are known, so that only the heads differ. Runs after the round's job from scratch."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._one: list[JobRun] = []
        self._many: list[JobRun] = []

    def measure(self, number: int) -> None:
        product, images, seed = self._bench.product, self._bench.images, self._bench.seed(number)
        self._one.append(product.train(images, seed, keep_features=True))
        self._many.append(product.train(images, seed, keep_features=True, spec={"weight_decay": "auto"}))

    def finding(self) -> Finding:
        pairs = list(zip(self._one, self._many, strict=True))
        fits = median(many.stages[Stage.FIT].compute_s / one.stages[Stage.FIT].compute_s for one, many in pairs)
        walls = median(many.answered_s / one.answered_s for one, many in pairs)
        gain = 100 * median(many.accuracy - one.accuracy for one, many in pairs)
        return Finding(
            [
                Figure("search_cost", fits, f"compute of the fit, {len(WEIGHT_DECAYS)} weight decays / one"),
                Figure("search_cost_wall", walls, "the same jobs, wall time"),
                Figure("search_gain_points", gain, "accuracy of the search less that of the default weight decay"),
            ],
            measurements={"one": [asdict(run) for run in self._one], "many": [asdict(run) for run in self._many]},
        )
