"""What `/metrics` says of predictions: the queue, and how the two versions of an alias compare.

Only aliases that have a second version are measured.
"""

from collections import OrderedDict
from enum import StrEnum
from typing import Generic, TypeVar

from prometheus_client import Counter, Gauge, Histogram

from services.inference.predict.choosing import Chosen

MAX_SERIES = 200
"""Of each metric. Beyond it the series that was written to longest ago goes, as one that starts at 0 if it comes
back: ended experiments leave nothing, and however many models there are, `/metrics` stays small."""

WAITING = Gauge("rekindle_waiting_images", "Images that wait in this gateway for a call to a replica.")
_ANSWERED = Histogram(
    "rekindle_alias_image_duration_seconds",
    "Time from asking for an image to its answer, by version of an alias that has two. role: main, split or shadow.",
    ["model", "alias", "version", "role"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
_SHADOWED = Counter(
    "rekindle_alias_shadow_images_total",
    "Images by what their shadow gave: agreed or disagreed (the most probable label), dropped (no room), failed.",
    ["model", "alias", "version", "challenger", "outcome"],
)

Metric = TypeVar("Metric", Counter, Histogram)


class Outcome(StrEnum):
    """What a challenger's turn at an image gave."""

    AGREED = "agreed"
    DISAGREED = "disagreed"
    DROPPED = "dropped"
    FAILED = "failed"


class BoundedSeries(Generic[Metric]):
    """The series of one metric, at most `limit`: the one used longest ago makes room."""

    def __init__(self, metric: Metric, limit: int = MAX_SERIES) -> None:
        self._metric = metric
        self._limit = limit
        self._used: OrderedDict[tuple[str, ...], None] = OrderedDict()

    def labels(self, *values: str) -> Metric:
        """The series with these labels."""
        self._used[values] = None
        self._used.move_to_end(values)
        if len(self._used) > self._limit:
            oldest, _ = self._used.popitem(last=False)
            self._metric.remove(*oldest)
        return self._metric.labels(*values)


answered = BoundedSeries(_ANSWERED)
shadowed = BoundedSeries(_SHADOWED)


def count_answer(chosen: Chosen, duration_s: float) -> None:
    """An image was answered; nothing is counted for a request without an alias that has two versions."""
    if chosen.alias is not None:
        served = chosen.served
        answered.labels(served.model_name, chosen.alias, str(served.version), chosen.role).observe(duration_s)


def count_shadow(chosen: Chosen, outcome: Outcome, duration_s: float | None) -> None:
    """A challenger had its turn at an image; `duration_s` where it gave a label."""
    if chosen.alias is None or chosen.shadow is None:
        return
    model, challenger = chosen.served.model_name, str(chosen.shadow.version)
    shadowed.labels(model, chosen.alias, str(chosen.served.version), challenger, outcome.value).inc()
    if duration_s is not None:
        answered.labels(model, chosen.alias, challenger, "shadow").observe(duration_s)
