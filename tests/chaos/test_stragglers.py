"""A task that hangs holds nobody up: it is begun again on another node."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.slow_tasks import TASKS
from tests.servers.ray_environment import ROOT
from tests.servers.ray_nodes import RayNodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_a_task_that_hangs_is_begun_again_on_another_node(cluster: RayNodes, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos.slow_tasks", str(tmp_path)]
    result = subprocess.run(command, env=cluster.env, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(list(range(TASKS)))
    assert "begun again" in result.stderr
    nodes = {path.name.partition("-")[2] for path in tmp_path.glob("0-*")}
    assert len(nodes) == 2
