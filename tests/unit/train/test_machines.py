"""Which nodes fit, and why a piece of work has none."""

import pytest
from ray.core.generated import autoscaler_pb2, common_pb2

from ray_cluster.train.cluster_view import read_status
from ray_cluster.train.machines import (
    ACCELERATOR_LABEL,
    MARKET_LABEL,
    NODE_LABEL,
    ClusterView,
    NodeView,
    Place,
    Unplaced,
    count_cores,
    obstacle,
)

ANY = Place()
SPOT = Place(market="spot")
ON_DEMAND = Place(market="on_demand")
FALLEN_BACK = Place(market="spot", on_demand_counts=True)
L4 = Place(market="spot", accelerator="L4")


def node(
    market: str | None, *, cpus: float = 4, free: float = 4, accelerator: str | None = None, draining: bool = False
) -> NodeView:
    labels = {MARKET_LABEL: market, ACCELERATOR_LABEL: accelerator}
    kept = {label: value for label, value in labels.items() if value is not None}
    return NodeView("ab", kept, total_cpus=cpus, free_cpus=free, draining=draining)


HEAD = node(None, cpus=0, free=0)


@pytest.mark.parametrize(
    ("place", "selector", "fitting"),
    [
        (ANY, {}, {"spot", "on-demand", None}),
        (SPOT, {MARKET_LABEL: "spot"}, {"spot"}),
        (ON_DEMAND, {MARKET_LABEL: "on-demand"}, {"on-demand"}),
        (FALLEN_BACK, {MARKET_LABEL: "in(on-demand,spot)"}, {"spot", "on-demand"}),
    ],
)
def test_a_market_takes_the_nodes_with_its_label(
    place: Place, selector: dict[str, str], fitting: set[str | None]
) -> None:
    assert place.selector() == selector
    assert {market for market in ("spot", "on-demand", None) if place.suits(node(market).labels)} == fitting


def test_an_accelerator_is_one_more_label() -> None:
    assert L4.selector() == {MARKET_LABEL: "spot", ACCELERATOR_LABEL: "L4"}
    assert Place(avoided_node="aa").selector() == {NODE_LABEL: "!aa"}
    assert L4.suits(node("spot", accelerator="L4").labels)
    assert not L4.suits(node("spot", accelerator="A100").labels)
    assert L4.words() == "a spot node with accelerator L4"


@pytest.mark.parametrize(
    ("nodes", "place", "said"),
    [
        ([], ANY, "no living node takes work"),
        ([HEAD], SPOT, "no living node takes work"),
        ([HEAD, node("spot")], SPOT, None),
        ([node(None)], ANY, None),
        ([node(None)], SPOT, "no living node has the label ray.io/market-type=spot; there are nodes without it"),
        (
            [node("on-demand"), node(None)],
            SPOT,
            "no living node has the label ray.io/market-type=spot; there are nodes without it, on-demand",
        ),
        ([node("on-demand")], FALLEN_BACK, None),
        ([node("spot")], L4, "no living node has the label ray.io/accelerator-type=L4; there are nodes without it"),
        ([node("spot"), node("on-demand", accelerator="L4")], L4, "no living node has all the labels at once"),
        ([node("spot", draining=True)], SPOT, "every node that fits is about to go"),
        ([node("spot", cpus=0.5)], SPOT, "no node that fits has 0.9 CPU"),
    ],
)
def test_what_is_said_where_no_node_fits(nodes: list[NodeView], place: Place, said: str | None) -> None:
    assert obstacle(ClusterView(nodes), 0.9, place) == said


MINE = Unplaced(0.9, {MARKET_LABEL: ("spot",)}, 2)


@pytest.mark.parametrize(
    ("free", "unplaced", "said"),
    [
        (0.4, [MINE], "the one node that fits is busy with other work"),
        (0.9, [MINE], None),
        (0.4, [], None),
        (0.4, [Unplaced(0.9, {}, 2)], None),
        (0.4, [Unplaced(1.0, {MARKET_LABEL: ("spot",)}, 2)], None),
    ],
)
def test_a_full_cluster_is_told_where_such_work_is_unplaced(
    free: float, unplaced: list[Unplaced], said: str | None
) -> None:
    view = ClusterView([node("spot", free=free), node("on-demand")], unplaced)
    assert obstacle(view, 0.9, SPOT) == said


def test_what_the_autoscaler_does_is_told() -> None:
    view = ClusterView([HEAD], starting=["spot", "spot"], refused={"gpu": "InsufficientInstanceCapacity"})
    assert obstacle(view, 0.9, ANY) == (
        "no living node takes work; starting: spot; could not start gpu: InsufficientInstanceCapacity"
    )


@pytest.mark.parametrize(("place", "cores"), [(ANY, 4), (SPOT, 2), (ON_DEMAND, 2), (L4, 1)])
def test_cores_are_those_of_the_nodes_that_fit(place: Place, cores: int) -> None:
    view = ClusterView([HEAD, node("spot", cpus=8), node("on-demand", cpus=2)])
    assert count_cores(view, 2, place) == cores


def test_rays_answer_is_read() -> None:
    reply = autoscaler_pb2.GetClusterStatusReply()
    state = reply.cluster_resource_state
    for status in (autoscaler_pb2.NodeStatus.IDLE, autoscaler_pb2.NodeStatus.DRAINING, autoscaler_pb2.NodeStatus.DEAD):
        listed = state.node_states.add(node_id=bytes([status]), status=status)
        listed.labels[MARKET_LABEL] = "spot"
        listed.total_resources["CPU"] = 4
        listed.available_resources["CPU"] = 3
    pending = state.pending_resource_requests.add(count=2)
    pending.request.resources_bundle["CPU"] = 0.9
    pending.request.label_selectors.add().label_constraints.add(
        label_key=MARKET_LABEL,
        operator=common_pb2.LabelSelectorOperator.LABEL_OPERATOR_IN,
        label_values=["spot", "on-demand"],
    )
    reply.autoscaling_state.failed_instance_requests.add(ray_node_type_name="spot", reason="no capacity")
    view = read_status(reply)
    assert [(each.node_id, each.draining) for each in view.nodes] == [("03", False), ("04", True)]
    assert view.nodes[0] == NodeView("03", {MARKET_LABEL: "spot"}, total_cpus=4, free_cpus=3)
    assert view.unplaced == [Unplaced(0.9, FALLEN_BACK.accepted(), 2)]
    assert view.refused == {"spot": "no capacity"}
