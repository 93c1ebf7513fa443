"""What is made in an account before the first machine, as EC2, IAM and S3 (moto) record it."""

import json
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from deploy.aws import account
from deploy.aws.policies import Names, head_policies, worker_policies
from deploy.aws.settings import AwsSettings
from tests.servers.ec2 import KEY, FakeEc2
from tests.unit.deploy.settings import settings


@pytest.fixture
def chosen(ec2: FakeEc2, tmp_path: Path) -> AwsSettings:
    """Settings whose key pair is there."""
    key = tmp_path / "my-key.pem"
    key.write_text(ec2.client().create_key_pair(KeyName=KEY)["KeyMaterial"])
    return settings(ssh_private_key=key)


def quiet(_line: str) -> None:
    """Nobody listens."""


def ingress(ec2: FakeEc2, group: str) -> set[tuple[str, int | None, str]]:
    """Protocol, port and source of everything that may come in."""
    (found,) = ec2.client().describe_security_groups(GroupIds=[group])["SecurityGroups"]
    return {
        (each["IpProtocol"], each.get("FromPort"), source)
        for each in found["IpPermissions"]
        for source in [
            *(one["CidrIp"] for one in each.get("IpRanges", [])),
            *(one["GroupId"] for one in each.get("UserIdGroupPairs", [])),
        ]
    }


def test_only_ssh_and_the_gateway_come_in_from_the_networks_named(chosen: AwsSettings, ec2: FakeEc2) -> None:
    wanted = chosen.model_copy(update={"api_from": ("198.51.100.0/24", "203.0.113.0/24")})
    groups = account.prepare(wanted, quiet)
    assert ingress(ec2, groups.nodes) == {("-1", None, groups.nodes)}
    assert ingress(ec2, groups.head) == {
        ("tcp", 22, "203.0.113.7/32"),
        ("tcp", 8080, "198.51.100.0/24"),
        ("tcp", 8080, "203.0.113.0/24"),
    }


def test_rules_follow_the_settings_and_others_go(chosen: AwsSettings, ec2: FakeEc2) -> None:
    groups = account.prepare(chosen, quiet)
    open_to_all = [{"CidrIp": "0.0.0.0/0"}]
    ec2.client().authorize_security_group_ingress(
        GroupId=groups.head,
        IpPermissions=[
            {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": open_to_all},
            {"IpProtocol": "tcp", "FromPort": 6379, "ToPort": 10002, "IpRanges": open_to_all},
        ],
    )
    moved = chosen.model_copy(update={"ssh_from": "192.0.2.4/32", "api_port": 9090})
    assert account.prepare(moved, quiet) == groups
    assert ingress(ec2, groups.head) == {("tcp", 22, "192.0.2.4/32"), ("tcp", 9090, "192.0.2.4/32")}


def test_roles_have_the_policies_and_nothing_else(chosen: AwsSettings, ec2: FakeEc2) -> None:
    groups = account.prepare(chosen, quiet)
    iam = ec2.client("iam")
    names = Names("123456789012", "aws", groups.nodes)
    wanted = {
        "rekindle-pets-head": head_policies(chosen, names),
        "rekindle-pets-worker": worker_policies(chosen, names),
    }
    for role, policies in wanted.items():
        there = {
            name: iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
            for name in iam.list_role_policies(RoleName=role)["PolicyNames"]
        }
        assert there == policies
        assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
        profile = iam.get_instance_profile(InstanceProfileName=role)["InstanceProfile"]
        assert [each["RoleName"] for each in profile["Roles"]] == [role]
        trust = iam.get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]
        assert [each["Principal"] for each in trust["Statement"]] == [{"Service": "ec2.amazonaws.com"}]
    assert [role for role in iam.list_roles()["Roles"] if role["Path"].endswith("/spot.amazonaws.com/")]


def test_repeating_it_mends_what_somebody_changed(chosen: AwsSettings, ec2: FakeEc2) -> None:
    account.prepare(chosen, quiet)
    iam = ec2.client("iam")
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    for policy in ("data", "more"):
        iam.put_role_policy(RoleName="rekindle-pets-worker", PolicyName=policy, PolicyDocument=json.dumps(everything))
    account.prepare(chosen, quiet)
    assert iam.list_role_policies(RoleName="rekindle-pets-worker")["PolicyNames"] == ["data"]
    data = iam.get_role_policy(RoleName="rekindle-pets-worker", PolicyName="data")["PolicyDocument"]
    assert data != everything


def test_a_bucket_is_made_private_with_versions_and_rules(chosen: AwsSettings, ec2: FakeEc2) -> None:
    account.prepare(chosen, quiet)
    s3 = ec2.client("s3")
    assert set(s3.get_public_access_block(Bucket="pets-data")["PublicAccessBlockConfiguration"].values()) == {True}
    assert s3.get_bucket_versioning(Bucket="pets-data")["Status"] == "Enabled"
    rules = s3.get_bucket_lifecycle_configuration(Bucket="pets-data")["Rules"]
    assert {rule["ID"] for rule in rules} == {"rekindle-unfinished-uploads", "rekindle-replaced-versions"}
    (unfinished,) = [rule for rule in rules if "AbortIncompleteMultipartUpload" in rule]
    assert unfinished["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
    assert unfinished["Filter"] == {"Prefix": "rekindle/"}


def test_a_bucket_that_is_there_keeps_its_own_rules(chosen: AwsSettings, ec2: FakeEc2) -> None:
    s3 = ec2.client("s3")
    s3.create_bucket(Bucket="pets-data")
    mine: dict[str, Any] = {"ID": "mine", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 9}}
    s3.put_bucket_lifecycle_configuration(Bucket="pets-data", LifecycleConfiguration={"Rules": [mine]})
    for _ in range(2):
        account.prepare(chosen, quiet)
    rules = s3.get_bucket_lifecycle_configuration(Bucket="pets-data")["Rules"]
    assert sorted(rule["ID"] for rule in rules) == ["mine", "rekindle-replaced-versions", "rekindle-unfinished-uploads"]
    with pytest.raises(ClientError):
        s3.get_public_access_block(Bucket="pets-data")


def test_a_missing_key_pair_is_told_before_anything_is_made(ec2: FakeEc2) -> None:
    with pytest.raises(account.AccountUnusable, match="my-key"):
        account.prepare(settings(), quiet)
    assert ec2.client("iam").list_roles()["Roles"] == []


def test_removing_leaves_the_bucket_only(chosen: AwsSettings, ec2: FakeEc2) -> None:
    account.prepare(chosen, quiet)
    for _ in range(2):
        account.remove(chosen)
    iam = ec2.client("iam")
    assert not [role for role in iam.list_roles()["Roles"] if role["RoleName"].startswith("rekindle-")]
    assert iam.list_instance_profiles()["InstanceProfiles"] == []
    groups = ec2.client().describe_security_groups()["SecurityGroups"]
    assert [group["GroupName"] for group in groups] == ["default"]
    assert [bucket["Name"] for bucket in ec2.client("s3").list_buckets()["Buckets"]] == ["pets-data"]
