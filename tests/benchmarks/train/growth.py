"""What a job costs as its data grows: the time per image, and the memory of its processes."""

from dataclasses import asdict

from tests.benchmarks.report import Figure, Finding, Table, Target
from tests.benchmarks.train.bench import Bench
from tests.benchmarks.train.head import compute_s
from tests.benchmarks.train.memory import DRIVER, WORKERS, largest_worker
from tests.benchmarks.train.product import JobRun

CROPS_APART = 1000
PEAK_RSS_BYTES = 1.5e9
MIB = 1024 * 1024


class GrowthPair:
    """Jobs from scratch on more and more images, one after the other; the rounds share them out."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._runs: dict[int, JobRun] = {}

    def measure(self, number: int) -> None:
        setting = self._bench.setting
        for order, count in enumerate(setting.growth):
            if order % setting.rounds == number:
                grown = self._bench.image_set(count, made=True, first_crop=CROPS_APART * (order + 1))
                self._runs[count] = self._bench.product.train(grown, setting.seeds[0], watch_memory=True)

    def finding(self) -> Finding:
        runs = sorted(self._runs.items())
        per_image_s = [compute_s(run) / count for count, run in runs]
        peaks = [largest_worker(run.peak_rss_bytes) for _, run in runs]
        return Finding(
            [
                Figure(
                    "peak_rss_bytes",
                    max((peak for peak in peaks if peak is not None), default=None),
                    "largest process that worked, at any number of images",
                    Target(at_most=PEAK_RSS_BYTES),
                ),
                Figure(
                    "growth_time_per_image",
                    per_image_s[-1] / per_image_s[0],
                    f"compute per image with {runs[-1][0]} / with {runs[0][0]} images",
                ),
            ],
            [_table(runs)],
            ["Growth: images are crops of the originals, different ones for each size, so that nothing is known."],
            {str(count): asdict(run) for count, run in runs},
        )


def _table(runs: list[tuple[int, JobRun]]) -> Table:
    seen = {kind for _, run in runs for kind in run.peak_rss_bytes}
    kinds = [kind for kind in (*WORKERS, DRIVER) if kind in seen]
    return Table(
        "Growth: milliseconds per image, and the largest resident sets in MiB",
        ("images", "compute", "wall", *kinds),
        [
            (
                str(count),
                1000 * compute_s(run) / count,
                1000 * run.answered_s / count,
                *(run.peak_rss_bytes[kind] / MIB if kind in run.peak_rss_bytes else None for kind in kinds),
            )
            for count, run in runs
        ],
    )
