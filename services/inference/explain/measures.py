"""How long explanations take, on `/metrics`."""

from prometheus_client import Histogram

from services.contracts.explanations import ExplanationFormat
from services.inference.predict.measures import BoundedSeries
from services.inference.predict.queries import ServedVersion

_EXPLAINED = Histogram(
    "rekindle_explanation_duration_seconds",
    "Time from asking for an explanation to its answer, by version. format: png or json.",
    ["model", "version", "format"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
explained = BoundedSeries(_EXPLAINED)


def count_explanation(served: ServedVersion, form: ExplanationFormat, duration_s: float) -> None:
    """An image was explained."""
    explained.labels(served.model_name, str(served.version), form).observe(duration_s)
