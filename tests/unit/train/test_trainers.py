"""Where a second trainer is started, so that one is loaded when the first is lost."""

import subprocess
import sys

import pytest

from ray_cluster.train.trainer import TrainerView
from ray_cluster.train.trainers import KnownTrainer, choose_standby, nodes_without


def trainer(
    node_id: str, *, idle: bool = True, stands_by: str | None = None, ready_for: str | None = None
) -> KnownTrainer:
    work = None if idle else "job_1:fit"
    view = TrainerView(
        node_id,
        {},
        work=work,
        identity=None,
        running=not idle,
        assists=None,
        stands_by=stands_by,
        ready_for=ready_for,
    )
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
        ([trainer("a", stands_by="job_2:fit")], 0, ["a", "b"], ["b", "a"]),
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


@pytest.mark.parametrize(
    ("usable", "chosen"),
    [
        ([], None),
        ([trainer("a", idle=False)], None),
        ([trainer("a"), trainer("b")], "a"),
        ([trainer("a"), trainer("b", stands_by="job_1:fit")], "b"),
        ([trainer("a", stands_by="job_1:fit"), trainer("b", stands_by="job_1:fit", ready_for="job_1:fit")], "b"),
        ([trainer("a", stands_by="job_2:fit", ready_for="job_2:fit")], None),
        ([trainer("a", stands_by="job_2:fit"), trainer("b", ready_for="job_2:fit")], "b"),
        ([trainer("a"), trainer("b", ready_for="job_1:fit")], "b"),
    ],
)
def test_a_standby_is_its_jobs_as_long_as_that_asks_for_it(usable: list[KnownTrainer], chosen: str | None) -> None:
    found = choose_standby(usable, "job_1:fit")
    assert (found and found.view.node_id) == chosen
