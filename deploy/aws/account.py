"""What of an AWS account a cluster needs before its first machine: roles, security groups, the bucket.

Every step may be repeated: it makes what is missing, and brings what is there in line with the settings.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import boto3
from botocore.exceptions import ClientError
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

from deploy.aws import policies
from deploy.aws.cluster import head_role, worker_role
from deploy.aws.groups import Groups, ensure_groups, remove_groups
from deploy.aws.settings import AwsSettings

PROFILE_SEEN_WITHIN_S = 90.0
GONE_WITHIN_S = 300.0
_AGAIN_AFTER_S = 2.0
_NOT_YET = ("InvalidParameterValue", "NoSuchEntity")

Say = Callable[[str], None]


class AccountUnusable(Exception):
    """Something is missing that only its owner can give; the message says what."""


def prepare(settings: AwsSettings, say: Say) -> Groups:
    """Makes everything, with the credentials of whoever runs this; the groups are what the cluster's YAML names.

    Raises:
        AccountUnusable: the key pair or the subnets are not there, or the bucket is somebody else's.
        botocore.exceptions.ClientError: AWS refused; what was done stays, and the next try goes on from there.
    """
    session = boto3.Session(region_name=settings.region)
    ec2, iam = session.client("ec2"), session.client("iam")
    identity = session.client("sts").get_caller_identity()
    _check_key(ec2, settings)
    groups = ensure_groups(ec2, settings, _vpc(ec2, settings))
    names = policies.Names(identity["Account"], identity["Arn"].split(":")[1], groups.nodes)
    _ensure_bucket(session.client("s3"), settings, say)
    _ensure_spot_role(iam)
    made = [
        _ensure_role(iam, role, documents)
        for role, documents in (
            (head_role(settings), policies.head_policies(settings, names)),
            (worker_role(settings), policies.worker_policies(settings, names)),
        )
    ]
    if any(made):
        say("waiting until EC2 knows the new roles")
        for role in (head_role(settings), worker_role(settings)):
            _wait_for_profile(ec2, settings, role)
    return groups


def remove(settings: AwsSettings) -> None:
    """Removes the roles and the groups; the bucket stays.

    Raises `botocore.exceptions.ClientError` while the cluster has machines.
    """
    session = boto3.Session(region_name=settings.region)
    ec2, iam = session.client("ec2"), session.client("iam")
    remove_groups(ec2, settings, _vpc(ec2, settings))
    for role in (head_role(settings), worker_role(settings)):
        _remove_role(iam, role)


def wait_until_gone(settings: AwsSettings) -> None:
    """Waits until no machine of the cluster is left; EC2 takes a minute. Raises `AccountUnusable` after five."""
    ec2 = boto3.client("ec2", region_name=settings.region)
    filters = [
        {"Name": f"tag:{TAG_RAY_CLUSTER_NAME}", "Values": [settings.name]},
        {"Name": "instance-state-name", "Values": ["pending", "running", "shutting-down", "stopping", "stopped"]},
    ]
    ends_at = time.monotonic() + GONE_WITHIN_S
    while left := ec2.describe_instances(Filters=filters)["Reservations"]:
        if time.monotonic() > ends_at:
            raise AccountUnusable(f"{len(left)} machines of {settings.name} are still there: repeat this later")
        time.sleep(_AGAIN_AFTER_S)


def _check_key(ec2: Any, settings: AwsSettings) -> None:
    try:
        ec2.describe_key_pairs(KeyNames=[settings.ssh_key_name])
    except ClientError as error:
        if _code(error) != "InvalidKeyPair.NotFound":
            raise
        raise AccountUnusable(f"there is no key pair {settings.ssh_key_name!r} in {settings.region}") from error
    if not settings.ssh_private_key.is_file():
        raise AccountUnusable(f"there is no private key at {settings.ssh_private_key}")


def _vpc(ec2: Any, settings: AwsSettings) -> str:
    """The network that the subnets are in, or the default one."""
    if settings.subnets:
        found = {subnet["VpcId"] for subnet in ec2.describe_subnets(SubnetIds=list(settings.subnets))["Subnets"]}
    else:
        default = [{"Name": "is-default", "Values": ["true"]}]
        found = {vpc["VpcId"] for vpc in ec2.describe_vpcs(Filters=default)["Vpcs"]}
    if len(found) != 1:
        raise AccountUnusable(f"the cluster needs one VPC, found {len(found)}: name subnets of one in `subnets`")
    return found.pop()


def _ensure_bucket(s3: Any, settings: AwsSettings, say: Say) -> None:
    """Makes it private, encrypted and with versions; one that is there keeps its ways, and gets the lifecycle rules."""
    bucket = policies.bucket_name(settings)
    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 403:
            raise AccountUnusable(f"the bucket {bucket} is there and not yours: take another name") from error
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        say(f"making the bucket {bucket}")
        place = {"LocationConstraint": settings.region}
        s3.create_bucket(
            Bucket=bucket, **({} if settings.region == "us-east-1" else {"CreateBucketConfiguration": place})
        )
        blocked = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
        s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(blocked, True))
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    rules = policies.lifecycle_rules(settings)
    ours = {rule["ID"] for rule in rules}
    kept = [rule for rule in _lifecycle(s3, bucket) if rule.get("ID") not in ours]
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [*kept, *rules]})


def _lifecycle(s3: Any, bucket: str) -> list[dict[str, Any]]:
    try:
        return s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    except ClientError as error:
        if _code(error) != "NoSuchLifecycleConfiguration":
            raise
        return []


def _ensure_spot_role(iam: Any) -> None:
    """An account's first spot machine needs it, and the head may not make it."""
    try:
        iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    except ClientError as error:
        if _code(error) not in ("InvalidInput", "EntityAlreadyExists"):  # both: the account has it
            raise


def _ensure_role(iam: Any, name: str, documents: Mapping[str, Mapping[str, Any]]) -> bool:
    """The role with exactly these policies, and its instance profile. Whether the profile is new."""
    trust = json.dumps(policies.trust_policy())
    if not _made(lambda: iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)):
        iam.update_assume_role_policy(RoleName=name, PolicyDocument=trust)
    for old in set(iam.list_role_policies(RoleName=name)["PolicyNames"]) - documents.keys():
        iam.delete_role_policy(RoleName=name, PolicyName=old)
    for policy, document in documents.items():
        iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=json.dumps(document))
    new = _made(lambda: iam.create_instance_profile(InstanceProfileName=name))
    roles = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]
    if not roles:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return new


def _made(make: Callable[[], object]) -> bool:
    """False where it was there."""
    try:
        make()
    except ClientError as error:
        if _code(error) != "EntityAlreadyExists":
            raise
        return False
    return True


def _wait_for_profile(ec2: Any, settings: AwsSettings, name: str) -> None:
    """IAM tells EC2 of a new profile some seconds later. Raises `AccountUnusable` when that takes too long."""
    ends_at = time.monotonic() + PROFILE_SEEN_WITHIN_S
    while True:
        try:
            ec2.run_instances(
                DryRun=True,
                MinCount=1,
                MaxCount=1,
                ImageId=settings.ami,
                InstanceType=settings.head_instance_type,
                IamInstanceProfile={"Name": name},
            )
        except ClientError as error:
            if _code(error) not in _NOT_YET:
                return  # `DryRunOperation`, or what the real launch will say
            said = str(error)
        else:
            return
        if time.monotonic() > ends_at:
            raise AccountUnusable(f"EC2 does not take {name} after {PROFILE_SEEN_WITHIN_S:g} s: {said}")
        time.sleep(_AGAIN_AFTER_S)


def _remove_role(iam: Any, name: str) -> None:
    for step in (
        lambda: iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=name),
        lambda: iam.delete_instance_profile(InstanceProfileName=name),
        lambda: [
            iam.delete_role_policy(RoleName=name, PolicyName=each)
            for each in iam.list_role_policies(RoleName=name)["PolicyNames"]
        ],
        lambda: iam.delete_role(RoleName=name),
    ):
        try:
            step()
        except ClientError as error:
            if _code(error) != "NoSuchEntity":
                raise


def _code(error: ClientError) -> str:
    return error.response["Error"]["Code"]
