"""Settings for tests, as they stand in a TOML file."""

from pathlib import Path
from typing import Any

from deploy.aws.settings import AwsSettings

VALUES: dict[str, Any] = {
    "name": "pets",
    "region": "us-east-1",
    "zones": ["us-east-1a", "us-east-1b"],
    "bucket": "s3://pets-data/rekindle",
    "ssh_key_name": "my-key",
    "ssh_private_key": Path("/keys/my-key.pem"),
    "ssh_from": "203.0.113.7/32",
    "ami": "ami-0123456789abcdef0",
    "gateway_image": "registry.example/rekindle:gateway",
    "head_image": "registry.example/rekindle:ray-cpu",
    "worker_image": "registry.example/rekindle:ray-gpu",
    "instance_types": ["g4dn.xlarge", "g5.2xlarge", "g4dn.2xlarge"],
    "max_workers": 8,
    "max_on_demand_workers": 2,
}


def settings(**changes: Any) -> AwsSettings:
    """These, but for the changes."""
    return AwsSettings.model_validate({**VALUES, **changes})
