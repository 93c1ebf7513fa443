"""A head job against the same training in plain Keras."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean, median

from services.contracts.jobs import Stage
from tests.benchmarks.report import Figure, Finding, Table, Target
from tests.benchmarks.train.arithmetic import epochs_total_s, points, speedup
from tests.benchmarks.train.bench import Bench, KerasRun
from tests.benchmarks.train.product import JobRun

EPOCHS = (10, 20)
COMPUTED = (Stage.PREFLIGHT, Stage.FEATURES, Stage.FIT, Stage.EVALUATE)
"""The stages that count as the product's compute; a training in Keras publishes nothing."""
POINTS_BELOW_KERAS = 0.5


class HeadPair:
    """Compute and wall time, and the accuracy of both."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._ours: list[JobRun] = []
        self._straight_after: list[JobRun] = []
        """Each right after another job, while no driver waits yet."""
        self._theirs: list[KerasRun] = []

    def measure(self, number: int) -> None:
        self._theirs.append(self._bench.keras_timed(number, self._bench.setting.keras_epochs))
        self._ours.append(self._bench.scratch(number))
        self._straight_after.append(self._bench.after_another(number))

    def finding(self) -> Finding:
        seeds = self._bench.setting.seeds
        extra = seeds[len(self._ours) :]  # more seeds than rounds: jobs for their accuracy alone
        ours = [run.accuracy for run in self._ours[: len(seeds)]]
        ours += [self._bench.product.train(self._bench.images, seed, keep_features=True).accuracy for seed in extra]
        theirs = self._bench.keras_accuracies(max(EPOCHS))
        return Finding(
            [
                *speed_figures(self._ours, self._theirs),
                *straight_after_figures(self._straight_after, self._theirs),
                *first_job_figures(self._bench.first, self._theirs),
                *accuracy_figures(ours, theirs),
            ],
            [keras_table(self._theirs), stage_table(self._ours)],
            [
                f"Keras: the first {self._bench.setting.keras_epochs} epochs of each round are measured, later ones "
                "count as the median of all but the first; compute is its epochs, validation on the test images "
                "included; wall time adds its process' start, and building and loading the network.",
                f"The product: compute is the work of {', '.join(COMPUTED)}; wall time is from the POST until the "
                "version answered a prediction, without features of these images, on a stack at rest, where a driver "
                "waits for the next job, or, as `straight_after`, before that driver is there. The stack has served a "
                "model of this backbone before; its very first job, which also builds the trunk and starts Serve, is "
                "given by itself.",
                f"Accuracy of Keras: mean over seeds {', '.join(map(str, seeds))} of the same head, trained as long on "
                "the features of Keras' own pixels: its backbone is frozen and nothing is augmented, so that is the "
                "same model. The product trains until its head has converged.",
            ],
            {"first": asdict(self._bench.first) if self._bench.first else None}
            | {"straight_after": [asdict(run) for run in self._straight_after]}
            | {"product": [asdict(run) for run in self._ours], "keras": [asdict(run) for run in self._theirs]}
            | {"accuracies_product": ours, "accuracies_keras": theirs},
        )


def compute_s(run: JobRun) -> float:
    """Of the stages that count."""
    return sum(run.stages[stage].compute_s for stage in COMPUTED)


def speed_figures(ours: Sequence[JobRun], theirs: Sequence[KerasRun]) -> list[Figure]:
    """Ratios over all rounds."""
    ours_s = [compute_s(run) for run in ours]
    totals_s = {epochs: [epochs_total_s(run.epochs_s, epochs) for run in theirs] for epochs in EPOCHS}
    training_s = [epochs_total_s(run.trainings_s, EPOCHS[0]) for run in theirs]
    answers_s = [run.answered_s for run in ours]
    return [
        Figure("speedup_10_epochs", speedup(ours_s, totals_s[10]), "compute, Keras' 10 epochs / ours", Target(25)),
        Figure("speedup_20_epochs", speedup(ours_s, totals_s[20]), "compute, Keras' 20 epochs / ours", Target(40)),
        Figure(
            "speedup_10_epochs_without_validation", speedup(ours_s, training_s), "the same, Keras without validating"
        ),
        Figure(
            "wall_speedup_10_epochs", speedup(answers_s, keras_walls_s(theirs)), "wall time, Keras / ours", Target(10)
        ),
    ]


def straight_after_figures(runs: Sequence[JobRun], theirs: Sequence[KerasRun]) -> list[Figure]:
    """What whoever trains again at once sees."""
    wall = speedup([run.answered_s for run in runs], keras_walls_s(theirs))
    compute = speedup([compute_s(run) for run in runs], [epochs_total_s(run.epochs_s, EPOCHS[0]) for run in theirs])
    return [
        Figure("speedup_10_epochs_straight_after", compute, "compute, right after another job"),
        Figure("wall_speedup_10_epochs_straight_after", wall, "wall time, right after another job"),
    ]


def first_job_figures(first: JobRun | None, theirs: Sequence[KerasRun]) -> list[Figure]:
    """What whoever tries it on a fresh stack sees."""
    if first is None:
        return []
    ratio = median(keras_walls_s(theirs)) / first.answered_s
    return [
        Figure("wall_speedup_10_epochs_first_job", ratio, "the same, the stack's very first job"),
        Figure("first_job_s", first.answered_s, "seconds from its POST until its version answered"),
    ]


def keras_walls_s(theirs: Sequence[KerasRun], epochs: int = EPOCHS[0]) -> list[float]:
    """Of so many epochs, the process' start included."""
    return [run.start_s + epochs_total_s(run.epochs_s, epochs) for run in theirs]


def accuracy_figures(ours: Sequence[float], theirs: Sequence[Sequence[float]]) -> list[Figure]:
    """`theirs`: for each seed, after each epoch. Keras is credited with the better of 10 and 20 epochs."""
    by_epochs = {epochs: mean(history[epochs - 1] for history in theirs) for epochs in EPOCHS}
    gain = points(mean(ours) - max(by_epochs.values()))
    return [
        Figure("accuracy_product", mean(ours), "on the test images, mean over the seeds"),
        Figure("accuracy_keras", by_epochs[10], "the same after 10 epochs of Keras"),
        Figure("accuracy_keras_20_epochs", by_epochs[20], "the same after 20"),
        Figure("accuracy_gain_points", gain, "ours less Keras' better one", Target(-POINTS_BELOW_KERAS)),
    ]


def keras_table(runs: Sequence[KerasRun]) -> Table:
    return Table(
        "Keras, seconds",
        ("round", "start", "first epoch", "median of the others", "of that, validation", "accuracy, last epoch"),
        [
            (
                str(number),
                run.start_s,
                run.epochs_s[0],
                median(run.epochs_s[1:]),
                median(run.validations_s[1:]),
                run.accuracies[-1],
            )
            for number, run in enumerate(runs, 1)
        ],
    )


def stage_table(runs: Sequence[JobRun]) -> Table:
    """Where the wall time of the jobs goes; medians."""
    rows: list[tuple[str, float | None, float | None, float]] = []
    started_s, between_s = median(run.started_s for run in runs), median(run.between_s for run in runs)
    rows.append(("POST to first stage", None, started_s, started_s))
    for stage in runs[0].stages:
        wall_s, work_s = (median(values) for values in zip(*_times(runs, stage), strict=True))
        rows.append((stage.value, work_s, wall_s - work_s, wall_s))
    rows.append(("between stages", None, between_s, between_s))
    ended_s = median(run.ended_s for run in runs)
    rows.append(("last stage to succeeded", None, ended_s, ended_s))
    answer_s = median(run.answered_s - run.wall_s for run in runs)
    rows.append(("succeeded to first answer", None, answer_s, answer_s))
    rows.append(("all", median(run.compute_s for run in runs), None, median(run.answered_s for run in runs)))
    return Table("A head job, seconds, medians", ("part", "compute", "overhead", "wall"), rows)


def _times(runs: Sequence[JobRun], stage: Stage) -> list[tuple[float, float]]:
    return [(run.stages[stage].wall_s, run.stages[stage].compute_s) for run in runs if stage in run.stages]
