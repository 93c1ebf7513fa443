"""`python -m ray_cluster.spot.drain`, where no node or no head answers."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ray_cluster.spot.drain import main

NOBODY = "127.0.0.1:1"
"""A head that does not answer."""
NOT_HERE = "f" * 56


@pytest.fixture
def node_id() -> Iterator[str]:
    """Of a process that looks like a raylet, whose head does not answer."""
    flags = [f"--node_id={'ab' * 28}", f"--gcs-address={NOBODY}", "--node_ip_address=192.0.2.1"]
    command = ["/somewhere/raylet", "-c", "print(flush=True); import time; time.sleep(600)", *flags]
    with subprocess.Popen(command, executable=sys.executable, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield "ab" * 28
        process.kill()


def events(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]


def test_a_node_that_is_not_there_is_waited_for_until_the_deadline(capsys: pytest.CaptureFixture[str]) -> None:
    started_at = time.monotonic()
    assert main(["--node-id", NOT_HERE, "--deadline-s", "1.2"]) == 1
    assert time.monotonic() - started_at > 0.5
    assert events(capsys) == ["spot.drain_failed", "spot.not_empty"]


def test_or_counts_as_empty_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    started_at = time.monotonic()
    assert main(["--node-id", NOT_HERE, "--deadline-s", "60", "--absent-is-empty"]) == 0
    assert time.monotonic() - started_at < 30
    assert events(capsys) == ["spot.no_node", "spot.drained"]


def test_a_node_that_is_there_is_not_absent(node_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--node-id", node_id, "--deadline-s", "1", "--absent-is-empty"]) == 1
    assert events(capsys) == ["spot.drain_failed", "spot.not_empty"]


def test_a_head_that_does_not_answer_says_nothing_of_the_node(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--address", NOBODY, "--node-id", NOT_HERE, "--deadline-s", "0.6", "--absent-is-empty"]
    assert main(asked) == 1
    assert events(capsys) == ["spot.drain_failed", "spot.not_empty"]
