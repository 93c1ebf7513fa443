"""What the head and the workers may do in the account, and what they may not."""

from typing import Any

import pytest

from deploy.aws.policies import Names, head_policies, lifecycle_rules, trust_policy, worker_policies
from tests.unit.deploy.iam import Context, allows
from tests.unit.deploy.settings import settings

ACCOUNT = "123456789012"
EC2 = f"arn:aws:ec2:us-east-1:{ACCOUNT}"
SETTINGS = settings(sources=["s3://photos/public", "s3://weights"])
NAMES = Names(ACCOUNT, "aws", "sg-nodes")
HEAD = head_policies(SETTINGS, NAMES)
WORKER = worker_policies(SETTINGS, NAMES)

LAUNCH: Context = {
    "aws:RequestTag/ray-cluster-name": "pets",
    "aws:RequestTag/ray-node-type": "worker",
    "ec2:MetadataHttpTokens": "required",
    "ec2:InstanceProfile": f"arn:aws:iam::{ACCOUNT}:instance-profile/rekindle-pets-worker",
}
OURS: Context = {"aws:ResourceTag/ray-cluster-name": "pets", "aws:ResourceTag/ray-node-type": "worker"}


def head_may(action: str, resource: str, context: Context | None = None) -> bool:
    return allows(HEAD.values(), action, resource, context)


def worker_may(action: str, resource: str, context: Context | None = None) -> bool:
    return allows(WORKER.values(), action, resource, context)


def test_the_head_launches_and_ends_workers_of_its_cluster() -> None:
    assert head_may("ec2:RunInstances", f"{EC2}:instance/*", LAUNCH)
    assert head_may("ec2:TerminateInstances", f"{EC2}:instance/i-1", OURS)
    assert head_may("ec2:DescribeInstances", "*", {"aws:RequestedRegion": "us-east-1"})
    status = {**OURS, "aws:TagKeys": ["ray-node-status", "ray-runtime-config"]}
    assert head_may("ec2:CreateTags", f"{EC2}:instance/i-1", status)


@pytest.mark.parametrize(
    "change",
    [
        {"aws:RequestTag/ray-cluster-name": "cars"},
        {"aws:RequestTag/ray-node-type": "head"},
        {"ec2:MetadataHttpTokens": "optional"},
        {"ec2:InstanceProfile": f"arn:aws:iam::{ACCOUNT}:instance-profile/admin"},
    ],
)
def test_it_launches_nothing_else(change: Context) -> None:
    assert not head_may("ec2:RunInstances", f"{EC2}:instance/*", {**LAUNCH, **change})
    without = {key: value for key, value in LAUNCH.items() if key not in change}
    assert not head_may("ec2:RunInstances", f"{EC2}:instance/*", without)


@pytest.mark.parametrize(
    ("part", "may"),
    [
        ("image/ami-0123456789abcdef0", False),  # an image is not of the account
        ("security-group/sg-nodes", True),
        ("security-group/sg-open", False),
        ("key-pair/my-key", True),
        ("key-pair/other", False),
        ("subnet/subnet-1", True),
        ("spot-instances-request/*", True),
    ],
)
def test_it_launches_from_the_clusters_own_parts(part: str, may: bool) -> None:
    assert head_may("ec2:RunInstances", f"{EC2}:{part}", {}) is may


def test_it_launches_the_settings_image_only() -> None:
    assert head_may("ec2:RunInstances", "arn:aws:ec2:us-east-1::image/ami-0123456789abcdef0")
    assert not head_may("ec2:RunInstances", "arn:aws:ec2:us-east-1::image/ami-0fedcba9876543210")


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {**OURS, "aws:ResourceTag/ray-cluster-name": "cars"},
        {**OURS, "aws:ResourceTag/ray-node-type": "head"},
    ],
)
def test_it_ends_neither_itself_nor_what_is_not_its_clusters(tags: Context) -> None:
    assert not head_may("ec2:TerminateInstances", f"{EC2}:instance/i-1", tags)


@pytest.mark.parametrize("tag", ["ray-cluster-name", "ray-node-type", "Owner"])
def test_it_cannot_make_a_machine_its_own_by_tags(tag: str) -> None:
    assert not head_may("ec2:CreateTags", f"{EC2}:instance/i-1", {**OURS, "aws:TagKeys": [tag]})
    foreign = {"aws:ResourceTag/ray-cluster-name": "cars", "aws:TagKeys": ["ray-node-status"]}
    assert not head_may("ec2:CreateTags", f"{EC2}:instance/i-1", foreign)


def test_it_gives_away_the_workers_role_only() -> None:
    to_ec2 = {"iam:PassedToService": "ec2.amazonaws.com"}
    role = f"arn:aws:iam::{ACCOUNT}:role/rekindle-pets"
    assert head_may("iam:PassRole", f"{role}-worker", to_ec2)
    assert not head_may("iam:PassRole", f"{role}-head", to_ec2)
    assert not head_may("iam:PassRole", f"{role}-worker", {"iam:PassedToService": "lambda.amazonaws.com"})


@pytest.mark.parametrize("may", [head_may, worker_may])
def test_both_keep_things_in_the_bucket_under_the_prefix(may: Any) -> None:
    for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"):
        assert may(action, "arn:aws:s3:::pets-data/rekindle/jobs/1/spec.json")
        assert not may(action, "arn:aws:s3:::pets-data/rekindle-of-others/x")
        assert not may(action, "arn:aws:s3:::other/rekindle/x")
    assert may("s3:ListBucket", "arn:aws:s3:::pets-data", {"s3:prefix": "rekindle/jobs/"})
    assert not may("s3:ListBucket", "arn:aws:s3:::pets-data", {"s3:prefix": "private/"})


@pytest.mark.parametrize("may", [head_may, worker_may])
def test_an_object_that_is_not_there_is_known_to_be_missing(may: Any) -> None:
    # S3 answers 404 for such a HEAD or GET to those who may list, and 403 to others; these have no `s3:prefix`.
    assert may("s3:ListBucket", "arn:aws:s3:::pets-data", {})


@pytest.mark.parametrize("may", [head_may, worker_may])
def test_sources_are_read_only(may: Any) -> None:
    assert may("s3:GetObject", "arn:aws:s3:::photos/public/cat.jpg")
    assert not may("s3:GetObject", "arn:aws:s3:::photos/private/cat.jpg")
    assert may("s3:GetObject", "arn:aws:s3:::weights/any/where.h5")
    assert may("s3:ListBucket", "arn:aws:s3:::photos", {"s3:prefix": "public/cats/"})
    assert not may("s3:PutObject", "arn:aws:s3:::photos/public/cat.jpg")
    assert not may("s3:DeleteObject", "arn:aws:s3:::weights/any/where.h5")


@pytest.mark.parametrize(
    "action",
    [
        "ec2:RunInstances",
        "ec2:TerminateInstances",
        "ec2:CreateTags",
        "ec2:DescribeInstances",
        "iam:PassRole",
        "s3:DeleteBucket",
        "s3:PutBucketPolicy",
        "ecr:PutImage",
    ],
)
def test_workers_touch_no_machines_and_no_settings(action: str) -> None:
    everything: Context = {**LAUNCH, **OURS, "aws:RequestedRegion": "us-east-1", "ec2:CreateAction": "RunInstances"}
    for resource in (f"{EC2}:instance/i-1", f"arn:aws:iam::{ACCOUNT}:role/rekindle-pets-worker", "*"):
        assert not worker_may(action, resource, everything)
    assert not worker_may(action, "arn:aws:s3:::pets-data", everything)


@pytest.mark.parametrize("policies", [HEAD, WORKER])
def test_no_action_is_a_pattern_and_only_what_has_no_resource_is_for_all(policies: dict[str, Any]) -> None:
    for policy in policies.values():
        for statement in policy["Statement"]:
            actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
            assert not [action for action in actions if "*" in action]
            if statement["Resource"] == "*":
                assert set(actions) <= {"ec2:DescribeInstances", "ecr:GetAuthorizationToken"}


def test_only_machines_take_the_roles() -> None:
    (statement,) = trust_policy()["Statement"]
    assert statement["Principal"] == {"Service": "ec2.amazonaws.com"}


def test_the_bucket_drops_what_no_listing_shows() -> None:
    rules = {rule["ID"]: rule for rule in lifecycle_rules(settings())}
    assert rules["rekindle-unfinished-uploads"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
    assert {rule["Filter"]["Prefix"] for rule in rules.values()} == {"rekindle/"}
    # Rekindle decides what of the current objects goes; the rules must not.
    assert not [rule for rule in rules.values() if "Days" in rule.get("Expiration", {})]
    assert {rule["Filter"]["Prefix"] for rule in lifecycle_rules(settings(bucket="s3://pets-data"))} == {""}
