"""Where a second trainer is started, so that one is loaded when the first is lost."""

import subprocess
import sys

import pytest

from ray_cluster.train.trainer import TrainerView
from ray_cluster.train.trainers import KnownTrainer, nodes_without


def trainer(node_id: str, *, idle: bool = True) -> KnownTrainer:
    work = None if idle else "job_1:fit"
    view = TrainerView(node_id, {}, work=work, identity=None, running=not idle, assists=None, ready_for=None)
    return KnownTrainer(f"trainer-{node_id}", None, view)


@pytest.mark.parametrize(
    ("known", "starting", "nodes", "wanted"),
    [
        ([], 0, ["b", "a", "c"], ["a", "b"]),
        ([], 0, ["a"], ["a"]),
        ([], 0, [], []),
        ([], 1, ["a", "b"], ["a"]),
        ([], 2, ["a", "b"], []),
        ([trainer("a")], 0, ["a", "b", "c"], ["b"]),
        ([trainer("a"), trainer("b")], 0, ["a", "b", "c"], []),
        ([trainer("a"), trainer("a")], 0, ["a", "b"], ["b"]),
        ([trainer("a", idle=False)], 0, ["a", "b", "c"], ["b", "c"]),
        ([trainer("a", idle=False), trainer("b", idle=False)], 0, ["a", "b"], ["a", "b"]),
        ([trainer("gone")], 0, ["a", "b"], ["a", "b"]),
    ],
)
def test_two_nodes_get_an_idle_trainer(
    known: list[KnownTrainer], starting: int, nodes: list[str], wanted: list[str]
) -> None:
    assert nodes_without(known, starting, nodes) == wanted


def test_a_trainer_that_fits_a_head_needs_no_tensorflow() -> None:
    """It takes seconds to load, and half a gigabyte."""
    code = (
        "import sys; import ray_cluster.train.trainer, ray_cluster.train.head_loop\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
