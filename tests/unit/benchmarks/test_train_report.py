"""The training benchmark's report: every figure once, and what missed its target is marked."""

import pytest

from tests.benchmarks.report import Figure, Finding, Table, Target, as_json, as_markdown, is_missed

FINDINGS = {
    "head": Finding(
        figures=[
            Figure("speedup", 31.4159, "how much faster", Target(at_least=25)),
            Figure("peak_rss_bytes", 2e9, "the largest", Target(at_most=1.5e9)),
            Figure("unknown", None, "not measured", Target(at_least=1)),
        ],
        tables=[Table("Times", ("part", "seconds"), [("start", 1.234), ("end", None), ("nothing", 0.0)])],
        notes=["Measured twice."],
        measurements={"runs": [1, 2]},
    ),
    "growth": Finding([Figure("plain", 0.0123456, "no target")]),
}


def test_the_json_has_every_figure_by_name_and_says_what_missed() -> None:
    report = as_json({"cores": 2}, FINDINGS)
    assert report["cores"] == 2
    assert (report["speedup"], report["peak_rss_bytes"], report["plain"]) == (31.4159, 2e9, 0.0123456)
    assert report["unknown"] is None
    assert report["missed"] == ["peak_rss_bytes"]
    assert report["measurements"] == {"head": {"runs": [1, 2]}, "growth": {}}
    assert report["notes"] == ["Measured twice."]


def test_the_markdown_shows_the_same() -> None:
    lines = as_markdown({"cores": 2}, FINDINGS).splitlines()
    assert "| speedup | 31.4 | >= 25 | how much faster |" in lines
    assert "| peak_rss_bytes | 2,000,000,000 | <= 1,500,000,000 (missed) | the largest |" in lines
    assert "| unknown | - | >= 1 | not measured |" in lines
    assert "| plain | 0.0123 |  | no target |" in lines
    assert lines[lines.index("Times:") + 2 :][:5] == [
        "| part | seconds |",
        "| --- | --- |",
        "| start | 1.23 |",
        "| end | - |",
        "| nothing | 0 |",
    ]
    assert lines[-2:] == ["- cores: 2", "- Measured twice."]


@pytest.mark.parametrize(
    ("value", "target", "missed"),
    [
        (25, Target(at_least=25), False),
        (24.9, Target(at_least=25), True),
        (0.2, Target(at_most=0.2), False),
        (0.21, Target(at_most=0.2), True),
        (5, Target(at_least=1, at_most=4), True),
        (5, None, False),
    ],
)
def test_a_target_is_met_at_its_bound(value: float, target: Target | None, missed: bool) -> None:
    assert is_missed(Figure("it", value, "", target)) is missed
