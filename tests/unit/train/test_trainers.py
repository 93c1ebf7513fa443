"""Where a second trainer is started, so that one is loaded when the first is lost."""

import pytest

from ray_cluster.train.trainer import TrainerView
from ray_cluster.train.trainers import KnownTrainer, nodes_without


def trainer(node_id: str, *, idle: bool = True) -> KnownTrainer:
    work = None if idle else "job_1:fit"
    view = TrainerView(node_id=node_id, node_labels={}, work=work, identity=None, running=not idle, assists=None)
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
