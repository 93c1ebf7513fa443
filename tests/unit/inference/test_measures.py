"""Few series, however many models there are."""

from prometheus_client import CollectorRegistry, Counter, generate_latest

from services.inference.predict.measures import BoundedSeries


def test_the_series_used_longest_ago_makes_room() -> None:
    registry = CollectorRegistry()
    series = BoundedSeries(Counter("images", "Help.", ["model"], registry=registry), limit=2)
    for model in ("a", "b", "a", "c", "a"):
        series.labels(model).inc()
    shown = {name: registry.get_sample_value("images_total", {"model": name}) for name in "abc"}
    assert shown == {"a": 3, "b": None, "c": 1}
    series.labels("b").inc()
    assert registry.get_sample_value("images_total", {"model": "b"}) == 1
    assert generate_latest(registry).count(b"images_total{") == 2
