"""The few things that differ from one deployment to the next, read from a TOML file."""

import ipaddress
import tomllib
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deploy.aws.instances import SHAPES
from services.runtime.settings import ENV_PREFIX, Settings

SET_HERE = {
    "REKINDLE_HOME",
    "REKINDLE_BUCKET",
    "REKINDLE_DATABASE_URL",
    "REKINDLE_RAY_DASHBOARD_URL",
    "REKINDLE_RAY_TOKEN",
    "REKINDLE_SERVE_URL",
    "REKINDLE_SERVE_HOST",
    "REKINDLE_SERVE_PORT",
    "REKINDLE_HOST",
    "REKINDLE_PORT",
    "REKINDLE_TLS_CERTIFICATE",
    "REKINDLE_TLS_KEY",
    "REKINDLE_REQUIRE_API_KEYS",
    "REKINDLE_ALLOW_LOCAL_SOURCES",
    "REKINDLE_ALLOWED_SOURCES",
}
"""Settings of the gateway that follow from the cluster's."""


class SettingsUnusable(ValueError):
    """The file cannot be read, or a value does not fit; the message says which and why."""


def _check_network(value: str) -> str:
    network = ipaddress.ip_network(value)
    if network.version != 4:
        raise ValueError(f"{value} is not an IPv4 network")
    return str(network)


def _check_place(value: str) -> str:
    if not value.startswith("s3://") or not value.removeprefix("s3://").split("/")[0]:
        raise ValueError(f"{value!r} is not s3://bucket or s3://bucket/prefix")
    if any(character in value for character in "*?$\"'\\ "):
        raise ValueError(f"{value!r} has a character that a policy would read as a pattern")
    return value.rstrip("/")


Network = Annotated[str, AfterValidator(_check_network)]
Place = Annotated[str, AfterValidator(_check_place)]


class AwsSettings(BaseModel):
    """One cluster. Immutable; raises `pydantic.ValidationError` before anything is asked of AWS."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,30}$", description="Of the cluster, in tags, roles and groups.")
    region: str = Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")
    zones: tuple[str, ...] = Field(min_length=1, description="Availability zones, in the order they are tried.")
    subnets: tuple[str, ...] = Field(default=(), description="Unset: the default VPC's public ones in the zones.")
    bucket: Place = Field(description="Where everything is kept. Made if it is not there.")
    sources: tuple[Place, ...] = Field(default=(), description="Other places that images and weights are read from.")

    ssh_key_name: str = Field(min_length=1, description="Name of the EC2 key pair.")
    ssh_private_key: Path = Field(description="Its private key on this machine.")
    ssh_from: Network = Field(description="Who may use SSH.")
    api_from: tuple[Network, ...] = Field(default=(), description="Who may reach the gateway. Unset: `ssh_from`.")
    api_port: int = Field(default=8080, ge=1024, le=65535)

    tls_certificate: Path | None = Field(
        default=None, description="PEM file on this machine: the gateway's, and those between it and its authority."
    )
    tls_key: Path | None = Field(default=None, description="PEM file on this machine: its private key.")

    ami: str = Field(pattern=r"^ami-[0-9a-f]{8,17}$", description="x86-64, with Docker, NVIDIA's driver and toolkit.")
    ssh_user: str = Field(default="ubuntu", description="Of the AMI. Its user id must be 1000.")
    gateway_image: str = Field(min_length=1)
    head_image: str = Field(min_length=1, description="`ray-cpu`.")
    worker_image: str = Field(min_length=1, description="`ray-gpu`.")

    head_instance_type: str = "m6i.xlarge"
    instance_types: tuple[str, ...] = Field(min_length=1, description="Of workers, in order of preference.")
    max_workers: int = Field(default=4, ge=1, le=200)
    max_on_demand_workers: int = Field(default=0, ge=0, description="Of them, bought on demand. 0: spot only.")
    idle_minutes: int = Field(default=10, ge=1)
    cool_off_s: int = Field(default=180, ge=10, description="How long a pool that had no machine is left alone.")
    disk_gib: int = Field(default=100, ge=50)

    gateway: dict[str, str] = Field(default={}, description="More settings of the gateway, `REKINDLE_…`.")

    @field_validator("instance_types")
    @classmethod
    def _known(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(types) - SHAPES.keys())
        if unknown:
            known = ", ".join(sorted(SHAPES))
            raise ValueError(f"{', '.join(unknown)}: add it to deploy/aws/instances.py, or take one of {known}")
        return tuple(dict.fromkeys(types))

    @field_validator("ssh_from")
    @classmethod
    def _not_everybody(cls, network: str) -> str:
        if ipaddress.ip_network(network).prefixlen == 0:
            raise ValueError("SSH for everybody: give the network that you come from, such as 203.0.113.7/32")
        return network

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        elsewhere = [zone for zone in self.zones if not zone.startswith(self.region)]
        if elsewhere:
            raise ValueError(f"{', '.join(elsewhere)} is not in region {self.region}")
        if self.max_on_demand_workers > self.max_workers:
            raise ValueError(f"max_on_demand_workers is more than max_workers ({self.max_workers})")
        if (self.tls_certificate is None) is not (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: give both, or none")
        known = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields} - SET_HERE
        strange = sorted(self.gateway.keys() - known)
        if strange:
            raise ValueError(f"[gateway] {', '.join(strange)}: no setting of the gateway, or one that is set elsewhere")
        return self

    @property
    def tls_files(self) -> tuple[Path, Path] | None:
        """Certificate and key; None for plain HTTP."""
        return (self.tls_certificate, self.tls_key) if self.tls_certificate and self.tls_key else None

    @property
    def api_url(self) -> str:
        """Where the gateway answers, without the host's address: `scheme://{}:port`."""
        return f"{'https' if self.tls_files else 'http'}://{{}}:{self.api_port}"

    @property
    def api_networks(self) -> tuple[str, ...]:
        """`api_from`, or its default."""
        return self.api_from or (self.ssh_from,)


def read_settings(path: Path) -> AwsSettings:
    """The settings in a TOML file; relative files are taken from its folder.

    Raises `SettingsUnusable`.
    """
    try:
        with path.open("rb") as file:
            settings = AwsSettings.model_validate(tomllib.load(file))
    except OSError as error:
        raise SettingsUnusable(f"{path}: {error.strerror}; copy deploy/aws/cluster.example.toml") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsUnusable(f"{path}: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'settings'}: {each['msg']}"
            for each in error.errors(include_url=False)
        )
        raise SettingsUnusable(f"{path}: {wrong}") from error
    files = {
        name: (path.parent / file.expanduser()).absolute()
        for name in ("ssh_private_key", "tls_certificate", "tls_key")
        if (file := getattr(settings, name)) is not None
    }
    missing = [f"{name} {file}" for name, file in files.items() if name.startswith("tls_") and not file.is_file()]
    if missing:
        raise SettingsUnusable(f"{path}: there is no {' and no '.join(missing)}")
    return settings.model_copy(update=files)
