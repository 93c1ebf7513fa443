"""The JSON documents beside this file, filled in for one cluster. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from deploy.aws.cluster import worker_role
from deploy.aws.settings import AwsSettings

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Names:
    """What of the account the documents name."""

    account: str
    """Its number."""
    partition: str
    """`aws`, but in China and for the government of the US."""
    node_group: str
    """Id of the workers' security group."""


def trust_policy() -> dict[str, Any]:
    """Who may take on the roles: machines."""
    return _filled("trust", {})


def head_policies(settings: AwsSettings, names: Names) -> dict[str, dict[str, Any]]:
    """The head's, by name: it launches and ends workers of its cluster, and does with data what they do."""
    values = _values(settings, names)
    return {"workers": _filled("head", values), **worker_policies(settings, names)}


def worker_policies(settings: AwsSettings, names: Names) -> dict[str, dict[str, Any]]:
    """The workers', by name: the bucket, the sources, and pulling images."""
    data = _filled("data", _values(settings, names))
    data["Statement"].extend(_reading(settings, names))
    return {"data": data}


def lifecycle_rules(settings: AwsSettings) -> list[dict[str, Any]]:
    """What the bucket does by itself: nothing that Rekindle's own garbage collection can do."""
    return _filled("lifecycle", {"prefix": _split(settings.bucket)[1]})["Rules"]


def bucket_name(settings: AwsSettings) -> str:
    """The bucket, without the prefix."""
    return _split(settings.bucket)[0]


def _reading(settings: AwsSettings, names: Names) -> list[dict[str, Any]]:
    if not settings.sources:
        return []
    places = [_split(source) for source in settings.sources]
    arns = [f"arn:{names.partition}:s3:::{bucket}" for bucket, _ in places]
    listing = [
        {
            "Sid": f"ListSource{number}",
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": arn,
            "Condition": {"StringLikeIfExists": {"s3:prefix": [f"{prefix}*"]}},
        }
        for number, (arn, (_, prefix)) in enumerate(zip(arns, places, strict=True), start=1)
    ]
    objects = [f"{arn}/{prefix}*" for arn, (_, prefix) in zip(arns, places, strict=True)]
    return [*listing, {"Sid": "ReadSources", "Effect": "Allow", "Action": "s3:GetObject", "Resource": objects}]


def _values(settings: AwsSettings, names: Names) -> dict[str, str]:
    bucket, prefix = _split(settings.bucket)
    return {
        "account": names.account,
        "partition": names.partition,
        "region": settings.region,
        "cluster": settings.name,
        "worker_role": worker_role(settings),
        "ami": settings.ami,
        "key": settings.ssh_key_name,
        "node_group": names.node_group,
        "bucket": f"arn:{names.partition}:s3:::{bucket}",
        "prefix": prefix,
    }


def _split(place: str) -> tuple[str, str]:
    """The bucket, and the prefix with a slash at its end, if there is one."""
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    return bucket, f"{prefix}/" if prefix else ""


def _filled(name: str, values: Mapping[str, str]) -> dict[str, Any]:
    return json.loads(Template((_FOLDER / f"{name}.json").read_text()).substitute(values))
