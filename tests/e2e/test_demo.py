"""The demo as a newcomer runs it, without make."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.local_stack import Orphans, clean_environment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
DEMO = [sys.executable, "-m", "services.local.demo"]


def test_it_trains_serves_predicts_and_leaves_nothing(orphans: Orphans, tmp_path: Path) -> None:
    environment = {**clean_environment(), "TMPDIR": str(tmp_path), "COLUMNS": "160"}
    result = subprocess.run(DEMO, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    text = result.stdout
    for shown in ("Reading every image", "Computing features", "Training the head", "Evaluating", "Publishing"):
        assert re.search(rf"{shown} +\d+\.\d s", text), f"no time for {shown!r} in:\n{text}"
    accuracy = re.search(r"Test accuracy ([\d.]+)%", text)
    assert accuracy is not None
    assert float(accuracy[1]) > 60  # six classes: guessing gives 17
    assert re.search(r"Class +Images +Precision +Recall +F1", text)
    assert "Model drawings version 1" in text
    right = re.search(r"(\d+) of 12 are right", text)
    assert right is not None
    assert int(right[1]) >= 7
    assert orphans.left() == []
    assert list(tmp_path.iterdir()) == [], "the demo's home was not removed"


def test_ctrl_c_stops_it_in_order(orphans: Orphans, tmp_path: Path) -> None:
    environment = {**clean_environment(), "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    demo = subprocess.Popen(DEMO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "Rekindle runs at" in line:
            break
    os.kill(demo.pid, signal.SIGINT)
    assert "stopped" in demo.stdout.read()
    assert demo.wait(60) == 130
    assert orphans.left() == []


def test_a_failure_is_an_exit_status_and_a_sentence(orphans: Orphans, tmp_path: Path) -> None:
    (tmp_path / "images" / "only").mkdir(parents=True)
    (tmp_path / "images" / "only" / "a.jpg").write_bytes(b"no image")
    environment = {**clean_environment(), "TMPDIR": str(tmp_path)}
    command = [*DEMO, "--images", str(tmp_path / "images"), "--backbone", "rekindle_tiny"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 1
    assert "the demo failed: " in result.stdout
    assert "class" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert orphans.left() == []
