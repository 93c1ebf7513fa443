"""The cluster's two security groups, and the rules in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

from deploy.aws.settings import AwsSettings

SSH_PORT = 22


@dataclass(frozen=True, slots=True)
class Groups:
    """Their ids."""

    nodes: str
    """All machines: everything among themselves, and nothing from outside."""
    head: str
    """The head, in addition: SSH and the gateway from the networks that the settings name."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Something that may come in."""

    source: str
    """A network, or the id of a group."""
    port: int | None = None
    """TCP; None for everything."""


def ensure_groups(ec2: Any, settings: AwsSettings, vpc: str) -> Groups:
    """Makes the groups, and makes their rules those of the settings: others go."""
    nodes = _ensure_group(ec2, settings, vpc, _nodes_name(settings), "All machines of a Rekindle cluster")
    head = _ensure_group(ec2, settings, vpc, _head_name(settings), "The head of a Rekindle cluster")
    _ensure_rules(ec2, nodes, {Rule(nodes)})
    api = {Rule(network, settings.api_port) for network in settings.api_networks}
    _ensure_rules(ec2, head, {Rule(settings.ssh_from, SSH_PORT), *api})
    return Groups(nodes, head)


def remove_groups(ec2: Any, settings: AwsSettings, vpc: str) -> None:
    """Removes them. Raises `ClientError` while machines are in them."""
    for name in (_head_name(settings), _nodes_name(settings)):
        group = _find(ec2, vpc, name)
        if group is not None:
            ec2.delete_security_group(GroupId=group["GroupId"])


def _nodes_name(settings: AwsSettings) -> str:
    return f"rekindle-{settings.name}-nodes"


def _head_name(settings: AwsSettings) -> str:
    return f"rekindle-{settings.name}-head"


def _find(ec2: Any, vpc: str, name: str) -> dict[str, Any] | None:
    filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [name]}]
    return next(iter(ec2.describe_security_groups(Filters=filters)["SecurityGroups"]), None)


def _ensure_group(ec2: Any, settings: AwsSettings, vpc: str, name: str, description: str) -> str:
    found = _find(ec2, vpc, name)
    if found is not None:
        return found["GroupId"]
    tags = [{"Key": TAG_RAY_CLUSTER_NAME, "Value": settings.name}]
    made = ec2.create_security_group(
        GroupName=name,
        Description=description,
        VpcId=vpc,
        TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
    )
    return made["GroupId"]


def _ensure_rules(ec2: Any, group_id: str, wanted: set[Rule]) -> None:
    found = ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"][0]["IpPermissions"]
    there = [each for permission in found for each in _rules(permission)]
    unwanted = [permission for rule, permission in there if rule not in wanted]
    missing = [_permission(rule) for rule in wanted - {rule for rule, _ in there}]
    if missing:
        ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=missing)
    if unwanted:
        ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=unwanted)


def _rules(permission: dict[str, Any]) -> Iterator[tuple[Rule | None, dict[str, Any]]]:
    """The rules in what EC2 lists, one source each; None for one that we never make."""
    base = {key: permission[key] for key in ("IpProtocol", "FromPort", "ToPort") if key in permission}
    everything = permission["IpProtocol"] == "-1"
    one_port = permission["IpProtocol"] == "tcp" and permission.get("FromPort") == permission.get("ToPort")
    port = None if everything else permission.get("FromPort")
    for kind, field in (("UserIdGroupPairs", "GroupId"), ("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6")):
        for source in permission.get(kind, []):
            rule = Rule(source[field], port) if everything or one_port else None
            yield rule, {**base, kind: [{field: source[field]}]}


def _permission(rule: Rule) -> dict[str, Any]:
    ports = {"IpProtocol": "-1"} if rule.port is None else {"IpProtocol": "tcp"}
    if rule.port is not None:
        ports |= {"FromPort": rule.port, "ToPort": rule.port}
    source = [{"GroupId": rule.source}] if rule.source.startswith("sg-") else None
    return ports | ({"UserIdGroupPairs": source} if source else {"IpRanges": [{"CidrIp": rule.source}]})
