"""A job on a tenth more images, against the job on those before: known images cost nothing."""

from dataclasses import asdict
from statistics import median

from tests.benchmarks.report import Figure, Finding, Table, Target
from tests.benchmarks.train.bench import Bench
from tests.benchmarks.train.head import compute_s
from tests.benchmarks.train.product import JobRun

GROWN_BY = 1.1


class RetrainPair:
    """Runs right after the round's job from scratch, on its dataset, to which images were added."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._scratch: list[JobRun] = []
        self._again: list[JobRun] = []

    def measure(self, number: int) -> None:
        bench = self._bench
        self._scratch.append(bench.scratch(number))
        self._again.append(bench.grown(number, round(GROWN_BY * bench.setting.image_count)))

    def finding(self) -> Finding:
        pairs = list(zip(self._scratch, self._again, strict=True))
        rows = [
            (stage.value, timing.compute_s, again.stages[stage].compute_s)
            for scratch, again in pairs[-1:]
            for stage, timing in scratch.stages.items()
        ]
        return Finding(
            [
                Figure(
                    "retrain_10_percent",
                    median(compute_s(again) / compute_s(scratch) for scratch, again in pairs),
                    "compute with a tenth more images / from scratch without them",
                    Target(at_most=0.2),
                ),
                Figure(
                    "retrain_10_percent_wall",
                    median(again.answered_s / scratch.answered_s for scratch, again in pairs),
                    "the same, wall time",
                ),
            ],
            [Table("Retraining with a tenth more images, compute seconds", ("stage", "scratch", "retrain"), rows)],
            measurements={"scratch": [asdict(run) for run in self._scratch], "again": [asdict(r) for r in self._again]},
        )
