"""Fine-tuning the last blocks against the same in plain Keras."""

from dataclasses import asdict
from statistics import median

from services.contracts.jobs import Stage
from tests.benchmarks.report import Figure, Finding, Table
from tests.benchmarks.train.arithmetic import epochs_total_s, speedup
from tests.benchmarks.train.bench import Bench, KerasRun
from tests.benchmarks.train.head import COMPUTED, compute_s, keras_walls_s
from tests.benchmarks.train.product import JobRun

BLOCKS = 2
EPOCHS = 10
SPEC = {"train": f"top_blocks:{BLOCKS}", "fine_tuning": {"epochs": EPOCHS, "patience": EPOCHS}}
KERAS_EPOCHS = 3
"""Measured; later ones are taken to be like them."""


class FineTuningPair:
    """The same blocks, batch size and number of epochs; both keep batch normalisation frozen."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._ours: list[JobRun] = []
        self._theirs: list[KerasRun] = []

    def measure(self, number: int) -> None:
        self._theirs.append(self._bench.keras_timed(number, KERAS_EPOCHS, cut=f"top_blocks:{BLOCKS}"))
        self._ours.append(self._bench.product.train(self._bench.images, self._bench.seed(number), spec=SPEC))

    def finding(self) -> Finding:
        theirs_s = [epochs_total_s(run.epochs_s, EPOCHS) for run in self._theirs]
        ours_s = [compute_s(run) + run.stages[Stage.FINE_TUNE].compute_s for run in self._ours]
        walls_s = keras_walls_s(self._theirs, EPOCHS)
        answers_s = [run.answered_s for run in self._ours]
        parts = [*COMPUTED, Stage.FINE_TUNE]
        return Finding(
            [
                Figure("fine_tune_speedup", speedup(ours_s, theirs_s), f"compute, {EPOCHS} epochs, Keras / ours"),
                Figure("fine_tune_wall_speedup", speedup(answers_s, walls_s), "the same, wall time"),
                Figure(
                    "fine_tune_accuracy", median(run.accuracy for run in self._ours), "ours, on the test images, median"
                ),
            ],
            [
                Table(
                    f"Fine-tuning the last {BLOCKS} blocks, compute seconds, medians",
                    ("part", "seconds"),
                    [(part.value, median(run.stages[part].compute_s for run in self._ours)) for part in parts]
                    + [(f"Keras, {EPOCHS} epochs", median(theirs_s))],
                )
            ],
            [
                f"Fine-tuning: the first {KERAS_EPOCHS} epochs of Keras are measured, later ones count as the median "
                "of all but the first. Ours also trains a head first, and keeps the activations below the cut: they "
                "cost once what an epoch of Keras costs every time."
            ],
            {"product": [asdict(run) for run in self._ours], "keras": [asdict(run) for run in self._theirs]},
        )
