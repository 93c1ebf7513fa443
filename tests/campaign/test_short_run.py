"""`make chaos`, short: every target is struck once on a whole deployment, and nothing is lost."""

import json
from pathlib import Path

import pytest

from tests.chaos.run import main
from tests.chaos.runner.schedule import Target

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


def test_nothing_is_lost_when_everything_is_struck_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report.json"
    short = ["--works", "1", "--jobs", "1", "--outage", "4", "--notice", "15", "--stage-wait", "1"]
    status = main(["--kills", str(len(Target)), "--seed", "1", *short, "--output", str(output)])
    printed = capsys.readouterr().out
    assert status == 0, printed
    report = json.loads(output.read_text())
    assert set(report["by_target"]) == set(Target)
    assert report["jobs_finished"] == report["bit_identical"] == report["jobs"] >= 1, printed
    assert report["duplicate_jobs"] == 0
