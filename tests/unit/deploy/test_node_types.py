"""Which node type Ray's scheduler takes for what a job asks for, by Ray's own scheduler."""

from dataclasses import replace

import pytest
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount
from ray.core.generated.common_pb2 import LabelSelectorOperator

from deploy.aws.node_types import worker_types
from ray_cluster.train.machines import Place
from tests.unit.deploy.settings import settings

TYPES = worker_types(settings(), {})
SPOT = Place(market="spot")


def launched_for(place: Place, cpus: float = 0.9) -> list[str]:
    """The node types that Ray's scheduler launches for a piece of work."""
    selector = [
        (label, LabelSelectorOperator.LABEL_OPERATOR_IN, list(values)) for label, values in place.accepted().items()
    ]
    work = ResourceRequestUtil.make({"CPU": cpus}, label_selectors=[selector] if selector else None)
    configs = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=each["min_workers"],
            max_worker_nodes=each["max_workers"],
            priority=each["priority"],
            resources=each["resources"],
            labels=each["labels"],
        )
        for name, each in TYPES.items()
    }
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=configs,
            max_num_nodes=8,
            resource_requests=[ResourceRequestByCount(request=work, count=1)],
        )
    )
    return [launch.instance_type for launch in reply.to_launch]


@pytest.mark.parametrize(
    ("place", "node_type"),
    [
        (Place(), "any"),
        (SPOT, "spot"),
        (replace(SPOT, on_demand_counts=True), "on-demand"),
        (Place(market="on_demand"), "on-demand"),
        (Place(accelerator="T4"), "any-t4"),
        (Place(market="spot", accelerator="A10G"), "spot-a10g"),
        (Place(market="spot", accelerator="A10G", on_demand_counts=True), "on-demand-a10g"),
    ],
)
def test_the_type_that_a_job_gets(place: Place, node_type: str) -> None:
    assert launched_for(place) == [node_type]


def test_an_accelerator_that_no_machine_has_starts_nothing() -> None:
    assert launched_for(Place(accelerator="H100")) == []


def test_each_type_declares_what_its_smallest_machine_has() -> None:
    assert {tuple(each["resources"].items()) for each in TYPES.values()} == {(("CPU", 4), ("GPU", 1))}


def test_offers_keep_what_the_labels_promise() -> None:
    for name, each in TYPES.items():
        offered = {offer["Market"] for offer in each["node_config"]["Offers"]}
        promised = each["labels"].get("ray.io/market-type")
        assert offered == ({promised} if promised else {"spot", "on-demand"}), name
    assert [offer["InstanceType"] for offer in TYPES["spot-t4"]["node_config"]["Offers"]] == [
        "g4dn.xlarge",
        "g4dn.2xlarge",
    ]
    assert TYPES["spot-a10g"]["labels"]["ray.io/accelerator-type"] == "A10G"


def test_without_on_demand_machines_nothing_offers_them() -> None:
    types = worker_types(settings(max_on_demand_workers=0), {})
    assert not [name for name in types if name.startswith("on-demand")]
    assert {offer["Market"] for each in types.values() for offer in each["node_config"]["Offers"]} == {"spot"}


def test_on_demand_types_have_the_clusters_limit() -> None:
    assert {each["max_workers"] for name, each in TYPES.items() if name.startswith("on-demand")} == {2}
    assert TYPES["any"]["max_workers"] == TYPES["spot"]["max_workers"] == 8
