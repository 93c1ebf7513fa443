"""The node provider against an EC2 that runs out of machines."""

import copy
from typing import Any

import pytest
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import NODE_KIND_HEAD, NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from deploy.aws.cluster import render, worker_role
from deploy.aws.policies import Names, head_policies
from ray_cluster.autoscaling.aws import FallbackProvider
from ray_cluster.autoscaling.pools import CoolOff
from tests.servers.ec2 import AMI, KEY, REGION, FakeEc2, Shortage
from tests.unit.deploy.iam import allows
from tests.unit.deploy.settings import settings

CLUSTER = "pets"
ZONES = ("us-east-1a", "us-east-1b")
TAGS = {
    TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
    TAG_RAY_USER_NODE_TYPE: "any",
    "ray-node-name": "ray-pets-worker",
    "ray-launch-config": "h",
    "ray-node-status": "uninitialized",
}
SPOT = [{"Market": "spot", "InstanceType": each} for each in ("g4dn.xlarge", "g5.xlarge")]
ON_DEMAND = [{"Market": "on-demand", "InstanceType": each} for each in ("g4dn.xlarge", "g5.xlarge")]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def zones(ec2: FakeEc2) -> list[str]:
    return ec2.subnets(*ZONES)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(ec2: FakeEc2, clock: Clock) -> FallbackProvider:
    made = _get_node_provider(
        {
            "type": "external",
            "module": "ray_cluster.autoscaling.aws.FallbackProvider",
            "region": REGION,
            "cache_stopped_nodes": False,
            "max_on_demand_workers": 2,
        },
        CLUSTER,
        use_cache=False,
    )
    assert type(made) is FallbackProvider
    made._cool_off = CoolOff(180, clock)
    return made


def config(zones: list[str], offers: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "ImageId": AMI,
        "KeyName": KEY,
        "SubnetIds": zones,
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 100, "VolumeType": "gp3"}}],
        "Offers": offers,
    }


def test_a_worker_is_a_one_time_spot_machine_with_its_clusters_tags(
    provider: FallbackProvider, ec2: FakeEc2, zones: list[str]
) -> None:
    iam = ec2.client("iam")
    iam.create_instance_profile(InstanceProfileName="worker")
    node_config = {**config(zones, SPOT + ON_DEMAND), "IamInstanceProfile": {"Name": "worker"}}
    before = copy.deepcopy(node_config)
    created = provider.create_node(node_config, dict(TAGS), 1)

    (machine,) = ec2.instances()
    assert list(created) == [machine["InstanceId"]]
    assert node_config == before, "Ray compares it with what it had, to tell outdated machines"
    assert machine["InstanceLifecycle"] == "spot"
    assert machine["InstanceType"] == "g4dn.xlarge"
    assert machine["SubnetId"] == zones[0]
    assert machine["KeyName"] == KEY
    assert machine["MetadataOptions"]["HttpTokens"] == "required"
    assert machine["MetadataOptions"]["HttpPutResponseHopLimit"] == 2
    assert machine["IamInstanceProfile"]["Arn"].endswith("/worker")
    tags = {each["Key"]: each["Value"] for each in machine["Tags"]}
    assert tags["ray-cluster-name"] == CLUSTER
    assert tags["ray-node-type"] == "worker"
    assert tags["ray-user-node-type"] == "any"
    assert tags["Name"] == "ray-pets-worker"

    (launch,) = ec2.launches
    assert launch["InstanceMarketOptions.SpotOptions.SpotInstanceType"] == "one-time"
    assert launch["InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior"] == "terminate"
    assert "InstanceMarketOptions.SpotOptions.MaxPrice" not in launch, "never above on-demand, and never outbid"
    assert not [key for key in launch if "Offer" in key]


def test_without_capacity_the_next_type_then_the_next_zone_then_on_demand(
    provider: FallbackProvider, ec2: FakeEc2, zones: list[str]
) -> None:
    ec2.shortages.append(Shortage(market="spot"))
    provider.create_node(config(zones, SPOT + ON_DEMAND), dict(TAGS), 1)
    first, second = zones
    assert ec2.pools_asked() == [
        ("spot", "g4dn.xlarge", first),
        ("spot", "g5.xlarge", first),
        ("spot", "g4dn.xlarge", second),
        ("spot", "g5.xlarge", second),
        ("on-demand", "g4dn.xlarge", first),
    ], "each pool once, and no retries of the client's own"
    (machine,) = ec2.instances()
    assert "InstanceLifecycle" not in machine


@pytest.mark.parametrize(
    "code",
    ["InsufficientInstanceCapacity", "SpotMaxPriceTooLow", "MaxSpotInstanceCountExceeded", "Unsupported"],
)
def test_every_way_of_saying_no_machine_here_leads_on(
    provider: FallbackProvider, ec2: FakeEc2, zones: list[str], code: str
) -> None:
    ec2.shortages.append(Shortage(instance_type="g4dn.xlarge", code=code))
    provider.create_node(config(zones, SPOT), dict(TAGS), 1)
    assert [machine["InstanceType"] for machine in ec2.instances()] == ["g5.xlarge"]


def test_a_pool_that_had_nothing_is_not_asked_again_before_the_cool_off_ends(
    provider: FallbackProvider, ec2: FakeEc2, zones: list[str], clock: Clock
) -> None:
    ec2.shortages.append(Shortage(instance_type="g4dn.xlarge", subnet_id=zones[0]))
    provider.create_node(config(zones, SPOT), dict(TAGS), 1)
    ec2.shortages.clear()
    ec2.launches.clear()
    clock.now = 179.0
    provider.create_node(config(zones, SPOT), dict(TAGS), 1)
    assert ec2.pools_asked() == [("spot", "g5.xlarge", zones[0])]
    clock.now = 180.0
    provider.create_node(config(zones, SPOT), dict(TAGS), 1)
    assert ec2.pools_asked()[1:] == [("spot", "g4dn.xlarge", zones[0])]


def test_when_nothing_is_left_the_reasons_are_told_and_ec2_is_left_alone(
    provider: FallbackProvider, ec2: FakeEc2, zones: list[str], clock: Clock
) -> None:
    ec2.shortages.append(Shortage(market="spot"))
    with pytest.raises(NodeLaunchException) as first:
        provider.create_node(config(zones, SPOT), dict(TAGS), 1)
    assert first.value.category == "NoCapacity"
    assert "InsufficientInstanceCapacity: spot g4dn.xlarge in" in first.value.description
    assert len(ec2.launches) == 4
    for clock.now in (5.0, 60.0, 179.0):
        with pytest.raises(NodeLaunchException) as again:
            provider.create_node(config(zones, SPOT), dict(TAGS), 1)
    assert len(ec2.launches) == 4
    assert again.value.description.endswith("asked again in 1 s")
    assert ec2.instances() == []


def test_what_one_pool_lacks_the_next_ones_give(provider: FallbackProvider, ec2: FakeEc2, zones: list[str]) -> None:
    ec2.shortages.append(Shortage(instance_type="g4dn.xlarge", left=1))
    created = provider.create_node(config(zones, SPOT), dict(TAGS), 3)
    assert len(created) == 3
    assert sorted(machine["InstanceType"] for machine in ec2.instances()) == ["g4dn.xlarge"] + 2 * ["g5.xlarge"]


def test_some_are_better_than_none(provider: FallbackProvider, ec2: FakeEc2, zones: list[str]) -> None:
    ec2.shortages.append(Shortage(left=2))
    assert len(provider.create_node(config(zones, SPOT), dict(TAGS), 5)) == 2
    assert len(ec2.instances()) == 2


def test_on_demand_machines_are_limited_over_all_launches(
    provider: FallbackProvider, ec2: FakeEc2, zones: list[str]
) -> None:
    ec2.shortages.append(Shortage(market="spot"))
    assert len(provider.create_node(config(zones, SPOT + ON_DEMAND), dict(TAGS), 1)) == 1
    assert len(provider.create_node(config(zones, ON_DEMAND), dict(TAGS), 3)) == 1
    with pytest.raises(NodeLaunchException, match="max_on_demand_workers"):
        provider.create_node(config(zones, ON_DEMAND), dict(TAGS), 1)
    assert len(ec2.instances()) == 2

    provider.terminate_node(ec2.instances()[0]["InstanceId"])
    assert len(provider.create_node(config(zones, ON_DEMAND), dict(TAGS), 1)) == 1


def test_spot_workers_and_the_head_do_not_count_as_on_demand_workers(
    provider: FallbackProvider, ec2: FakeEc2, zones: list[str]
) -> None:
    head = {key: value for key, value in config(zones, []).items() if key != "Offers"}
    provider.create_node({**head, "InstanceType": "m6i.xlarge"}, {**TAGS, TAG_RAY_NODE_KIND: NODE_KIND_HEAD}, 1)
    provider.create_node(config(zones, SPOT), dict(TAGS), 3)
    assert len(provider.create_node(config(zones, ON_DEMAND), dict(TAGS), 2)) == 2
    assert len(ec2.instances()) == 6


@pytest.mark.parametrize("code", ["UnauthorizedOperation", "InvalidAMIID.NotFound", "RequestLimitExceeded"])
def test_what_every_pool_would_answer_ends_the_launch_at_once(
    provider: FallbackProvider, ec2: FakeEc2, zones: list[str], code: str
) -> None:
    ec2.shortages.append(Shortage(code=code))
    with pytest.raises(NodeLaunchException) as refused:
        provider.create_node(config(zones, SPOT), dict(TAGS), 1)
    assert refused.value.category == code
    assert len(ec2.launches) == 1
    ec2.shortages.clear()
    assert provider.create_node(config(zones, SPOT), dict(TAGS), 1), "it says nothing about the pool"


def test_machines_that_ended_are_gone_from_the_list(provider: FallbackProvider, ec2: FakeEc2, zones: list[str]) -> None:
    reclaimed, idle, kept = provider.create_node(config(zones, SPOT), dict(TAGS), 3)
    ec2.client().terminate_instances(InstanceIds=[reclaimed])
    provider.terminate_nodes([idle])
    assert provider.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_WORKER}) == [kept]
    assert provider.is_terminated(reclaimed)
    assert provider.is_terminated(idle)
    assert {each["InstanceId"] for each in ec2.instances("terminated")} == {reclaimed, idle}


def test_another_cluster_is_left_alone(provider: FallbackProvider, ec2: FakeEc2, zones: list[str]) -> None:
    other = FallbackProvider({**provider.provider_config}, "cars")
    other.create_node(config(zones, ON_DEMAND), dict(TAGS), 2)
    assert provider.non_terminated_nodes({}) == []
    assert len(provider.create_node(config(zones, ON_DEMAND), dict(TAGS), 2)) == 2


def test_the_heads_role_allows_what_a_launch_asks_for(ec2: FakeEc2, provider: FallbackProvider) -> None:
    chosen = settings(ami=AMI, subnets=ec2.subnets(*ZONES))
    ec2.client("iam").create_instance_profile(InstanceProfileName=worker_role(chosen))
    (group,) = (each["GroupId"] for each in ec2.client().describe_security_groups()["SecurityGroups"])
    rendered = render(chosen, node_group=group, head_group="sg-head", cluster_folder="/x")
    provider.create_node(rendered["available_node_types"]["any"]["node_config"], dict(TAGS), 1)

    (launch,) = ec2.launches
    tags = {
        f"aws:RequestTag/{value}": launch[key.replace("Key", "Value")]
        for key, value in launch.items()
        if key.startswith("TagSpecification.1.Tag.") and key.endswith(".Key")
    }
    profile = f"arn:aws:iam::123456789012:instance-profile/{launch['IamInstanceProfile.Name']}"
    context = {**tags, "ec2:MetadataHttpTokens": launch["MetadataOptions.HttpTokens"], "ec2:InstanceProfile": profile}
    policies = head_policies(chosen, Names("123456789012", "aws", group)).values()
    own = f"arn:aws:ec2:{REGION}:123456789012"
    assert launch["TagSpecification.1.ResourceType"] == "instance"
    for resource in (
        f"{own}:instance/*",
        f"{own}:subnet/{launch['SubnetId']}",
        f"{own}:security-group/{launch['SecurityGroupId.1']}",
        f"{own}:key-pair/{launch['KeyName']}",
        f"arn:aws:ec2:{REGION}::image/{launch['ImageId']}",
    ):
        assert allows(policies, "ec2:RunInstances", resource, context), resource
    for kind in ("instance", "volume"):
        at_launch = {**tags, "ec2:CreateAction": "RunInstances"}
        assert allows(policies, "ec2:CreateTags", f"{own}:{kind}/*", at_launch), kind
