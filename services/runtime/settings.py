"""Every setting of every Rekindle process, read once from `REKINDLE_*` environment variables in each `main`."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from services.contracts.backbones import BACKBONES, MAX_IMAGE_SIZE, BackboneName
from services.contracts.base import Sha256
from services.contracts.errors import SourceNotAllowed
from services.contracts.jobs import BaseModelSpec, Weights, WeightsUri
from services.contracts.serving import ReplicaScale

ENV_PREFIX = "REKINDLE_"
MIB = 1024 * 1024
GIB = 1024 * MIB


def _default_database_url(data: dict[str, Any]) -> str:
    # A home that did not validate is reported by itself; it is missing here.
    home = cast("Path", data.get("home", Path()))
    return f"sqlite+aiosqlite:///{home.absolute() / 'rekindle.db'}"


def is_loopback(host: str) -> bool:
    """Whether an address to bind can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files."""

    certificate: Path
    key: Path


class Settings(BaseSettings):
    """Immutable. `Settings()` reads the environment; keyword arguments win over it.

    Raises `pydantic.ValidationError` for a value that does not fit, before anything is started.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    # --- where things are ---
    home: Path = Field(
        default=Path(".rekindle"), description="Folder for everything that Rekindle keeps on this machine."
    )
    bucket: str | None = Field(
        default=None,
        description="Where datasets, checkpoints and models are kept: `s3://bucket/prefix` or `file:///folder`. "
        "Unset: the folder `bucket` in `REKINDLE_HOME`.",
    )
    database_url: str = Field(
        default_factory=_default_database_url,
        repr=False,  # may hold a password
        description="SQLAlchemy URL, SQLite or PostgreSQL (`postgresql://…`). Unset: `rekindle.db` in `REKINDLE_HOME`.",
    )
    ray_dashboard_url: str = Field(
        default="http://127.0.0.1:8265", description="The Ray cluster's dashboard: Jobs API and Serve API."
    )
    ray_token: SecretStr | None = Field(
        default=None, description="The cluster's token, where it runs with `RAY_AUTH_MODE=token`."
    )
    serve_url: str = Field(default="http://127.0.0.1:8000", description="Where Ray Serve answers requests.")
    serve_host: str = Field(default="127.0.0.1", description="Address that Ray Serve's proxies bind when deployed.")
    serve_port: int = Field(default=8000, ge=1, le=65535, description="Port that Ray Serve's proxies bind.")
    serve_min_replicas: int = Field(default=1, ge=0, description="Replicas that each trunk has at least.")
    serve_max_replicas: int = Field(
        default=1, ge=1, description="Replicas that each trunk has at most; they follow the requests in progress."
    )
    serve_replica_cpus: float = Field(
        default=0.1, ge=0, description="Logical CPUs of its node that a replica reserves."
    )
    serve_replica_gpus: float = Field(
        default=0,
        ge=0,
        description="GPUs of its node that a replica reserves, e.g. 0.5; with 0 it runs on CPUs.",
    )
    serve_replica_threads: int = Field(
        default=0, ge=0, description="Threads that compute in a replica; 0 for one per core of its node."
    )

    # --- HTTP ---
    host: str = Field(default="127.0.0.1", description="Address that the gateways bind.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port of the training gateway, or of both in one.")
    inference_port: int = Field(
        default=8081, ge=0, le=65535, description="Port of the inference gateway where it runs by itself."
    )
    public_url: str | None = Field(
        default=None, description="Base URL under which clients reach the API, where it differs from the address bound."
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="PEM file with the gateways' certificate and those between it and its authority, read when a "
        "gateway starts. Unset: plain HTTP.",
    )
    tls_key: Path | None = Field(default=None, description="PEM file with the certificate's private key.")
    require_api_keys: bool | None = Field(
        default=None,
        description="Whether requests need an API key. Unset: unless the address bound is a loopback address. "
        "Cannot be turned off on any other address.",
    )
    max_request_bytes: int = Field(
        default=4 * MIB, ge=1024, description="Largest body in bytes of a request that carries no files."
    )
    predict_deadline_s: float = Field(
        default=30, gt=0, le=600, description="Seconds a prediction may take, waiting for a replica included."
    )

    # --- where images and weights may come from ---
    allow_local_sources: bool | None = Field(
        default=None,
        description="Whether datasets and weights may be named as `file://` folders of this machine. "
        "Unset: if the address bound is a loopback address.",
    )
    allowed_sources: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("s3://",),
        description="URI prefixes that datasets, images and weights may be read from, separated by commas.",
    )

    # --- limits ---
    max_upload_bytes: int = Field(default=64 * MIB, ge=1024, description="Largest uploaded file in bytes.")
    max_archive_bytes: int = Field(default=10 * GIB, ge=1024, description="Largest uploaded archive in bytes.")
    max_archive_entries: int = Field(default=200_000, ge=1, description="Most files in an archive.")
    max_archive_expansion_ratio: float = Field(
        default=100, ge=1, description="How many times its own size an archive may expand to."
    )
    max_images_per_request: int = Field(default=64, ge=1, description="Most images in one prediction request.")

    # --- the base model ---
    base_backbone: BackboneName = Field(
        default=BackboneName.MOBILENET_V2, description="Backbone of the model `base`, the pretrained classifier itself."
    )
    base_weights: str | None = Field(
        default=None, description="`imagenet`, or the URI of a weights file with top. Unset: there is no model `base`."
    )
    base_weights_sha256: Sha256 | None = Field(default=None, description="Expected SHA-256 of the base weights file.")
    base_image_size: int | None = Field(
        default=None, ge=32, le=MAX_IMAGE_SIZE, description="Image side in pixels. Unset: the backbone's own."
    )
    base_labels: str | None = Field(
        default=None,
        description="URI of a JSON list of names, or of Keras' class index. "
        "Unset: ImageNet's, as Keras downloads them, which fits the weights `imagenet` only.",
    )

    # --- Michaniki's calls ---
    legacy_backbone: BackboneName = Field(
        default=BackboneName.INCEPTION_V3, description="Backbone of the models that `/inceptionV3/transfer` makes."
    )
    legacy_weights: str | None = Field(
        default=None,
        pattern=r"^(s3|file)://.",
        max_length=1024,
        description="Its weights: the URI of a file in one of the allowed sources. Unset: the backbone's own, which "
        "Keras downloads.",
    )
    legacy_weights_sha256: Sha256 | None = Field(default=None, description="Expected SHA-256 of that file.")
    legacy_label_wait_s: float = Field(
        default=300,
        ge=0,
        le=3600,
        description="Seconds that `/inceptionV3/label` waits for the labels; what takes longer is answered with the id "
        "of a task.",
    )

    # --- the reconciler ---
    reconcile_interval_s: float = Field(default=0.5, gt=0, le=60, description="Seconds between looks at the cluster.")
    lease_s: float = Field(
        default=10,
        ge=1,
        le=300,
        description="Seconds after which a dead gateway's reconciler is replaced by another's.",
    )
    max_running_jobs: int = Field(
        default=4, ge=1, le=10_000, description="Most jobs that the cluster is given at a time; the others are queued."
    )
    spare_driver: bool = Field(
        default=True,
        description="Keep a process in the cluster that waits for the next job, so that it begins seconds sooner. "
        "Takes 0.2 GB of the head's memory, and 0.1 GB for each of the head's CPUs if jobs run there.",
    )
    retry_initial_s: float = Field(
        default=2, gt=0, le=600, description="Seconds before an attempt follows one that failed; doubles each time."
    )
    retry_max_s: float = Field(default=120, gt=0, le=3600, description="Longest time in seconds between attempts.")

    # --- garbage ---
    garbage_interval_s: float = Field(
        default=6 * 3600, ge=0, description="Seconds between collections of the bucket's garbage. 0: none."
    )
    garbage_grace_s: float = Field(
        default=24 * 3600,
        ge=60,
        description="Seconds that garbage stays in the bucket, after it was written and after it became garbage.",
    )
    garbage_features_s: float | None = Field(
        default=None,
        ge=3600,
        description="Seconds after which features are removed that no version and no running job has a use for. "
        "Unset: they are kept for the next job.",
    )

    # --- receipts ---
    prices: Path | None = Field(
        default=None,
        description="JSON file with prices of your own for receipts, see docs/operations.md. Unset: those that come "
        "with Rekindle.",
    )

    # --- logs ---
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log lines that are written."
    )
    log_format: Literal["console", "json"] = Field(default="console", description="`console` or `json` lines.")

    @field_validator("allowed_sources", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("ray_dashboard_url", "serve_url", "public_url", "bucket")
    @classmethod
    def _without_trailing_slash(cls, value: str | None) -> str | None:
        return value.rstrip("/") if value is not None else None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.serve_min_replicas > self.serve_max_replicas:
            raise ValueError(
                f"REKINDLE_SERVE_MIN_REPLICAS {self.serve_min_replicas} is more than REKINDLE_SERVE_MAX_REPLICAS "
                f"{self.serve_max_replicas}: raise the second or lower the first"
            )
        if self.require_api_keys is False and not is_loopback(self.host):
            raise ValueError(
                f"REKINDLE_REQUIRE_API_KEYS=false with REKINDLE_HOST={self.host} would let everybody who reaches this "
                "machine in: bind 127.0.0.1, or leave REKINDLE_REQUIRE_API_KEYS unset and create a key"
            )
        if (self.tls_certificate is None) is not (self.tls_key is None):
            raise ValueError("REKINDLE_TLS_CERTIFICATE and REKINDLE_TLS_KEY belong together: set both, or none")
        if self.retry_max_s < self.retry_initial_s:
            raise ValueError(
                f"REKINDLE_RETRY_MAX_S ({self.retry_max_s}) is less than REKINDLE_RETRY_INITIAL_S "
                f"({self.retry_initial_s})"
            )
        return self

    @property
    def tls(self) -> TlsFiles | None:
        """Certificate and key of the gateways; None for plain HTTP."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_certificate, self.tls_key)

    @property
    def ray_bearer_token(self) -> str | None:
        """`ray_token` in the clear."""
        return None if self.ray_token is None else self.ray_token.get_secret_value()

    @property
    def bucket_uri(self) -> str:
        """The bucket's URI, without a trailing slash."""
        return self.bucket or (self.home.absolute() / "bucket").as_uri()

    @property
    def local_sources_allowed(self) -> bool:
        """`allow_local_sources`, or its default for the address bound."""
        return is_loopback(self.host) if self.allow_local_sources is None else self.allow_local_sources

    @property
    def api_keys_required(self) -> bool:
        """`require_api_keys`, or its default for the address bound."""
        return not is_loopback(self.host) if self.require_api_keys is None else self.require_api_keys

    def replica_scale(self) -> ReplicaScale:
        """Of every trunk's replicas."""
        return ReplicaScale(
            min_replicas=self.serve_min_replicas,
            max_replicas=self.serve_max_replicas,
            num_cpus=self.serve_replica_cpus,
            num_gpus=self.serve_replica_gpus,
            threads=self.serve_replica_threads,
        )

    def base_model(self) -> BaseModelSpec | None:
        """The pretrained classifier to serve as `base`, or None where there is none."""
        if self.base_weights is None:
            return None
        weights: Weights
        if self.base_weights == "imagenet" or self.base_weights == "bundled":
            weights = self.base_weights
        else:
            weights = WeightsUri(uri=self.base_weights, sha256=self.base_weights_sha256)
        return BaseModelSpec(
            backbone=self.base_backbone,
            weights=weights,
            image_size=self.base_image_size or BACKBONES[self.base_backbone].default_image_size,
            labels_uri=self.base_labels,
        )

    def legacy_backbone_weights(self) -> WeightsUri | None:
        """The weights of `legacy_backbone`; None means its own."""
        if self.legacy_weights is None:
            return None
        return WeightsUri(uri=self.legacy_weights, sha256=self.legacy_weights_sha256)


def check_source_allowed(uri: str, settings: Settings) -> None:
    """Refuses a URI that the operator does not let Rekindle read.

    A prefix matches whole path segments: `s3://pets/cats` admits `s3://pets/cats/1.jpg`, not `s3://pets/cats-private/`.

    Raises:
        SourceNotAllowed: another scheme, `..` or control characters in the path, or no allowed prefix matches.
    """
    if any(ord(character) < ord(" ") or character == "\x7f" for character in uri):
        raise SourceNotAllowed(f"{uri!r} has control characters in it", {})
    scheme, _, location = uri.partition("://")
    authority, *segments = location.split("/")
    if ".." in segments:
        raise SourceNotAllowed(f"{uri!r} climbs with '..': name the place itself", {"uri": uri})
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise SourceNotAllowed(f"{uri!r} names another machine: use file:///folder/", {"uri": uri})
        if not settings.local_sources_allowed:
            raise SourceNotAllowed(
                f"{uri!r} is a local path, which this server does not read: upload the images or use s3://",
                {"uri": uri},
            )
        return
    if scheme != "s3" or not authority:
        raise SourceNotAllowed(f"{uri!r} is not s3://bucket/prefix", {"uri": uri})
    if not any(_covers(prefix, uri) for prefix in settings.allowed_sources):
        allowed = ", ".join(settings.allowed_sources) or "none"
        raise SourceNotAllowed(f"{uri!r} is outside the allowed sources ({allowed})", {"uri": uri})


def _covers(prefix: str, uri: str) -> bool:
    if prefix.endswith("/"):
        return uri.startswith(prefix) or uri == prefix.rstrip("/")
    return uri == prefix or uri.startswith(f"{prefix}/")


def settings_table() -> str:
    """All settings as a Markdown table: variable, default, meaning."""
    rows = ["| Variable | Default | Meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `{ENV_PREFIX}{name.upper()}` | {_shown_default(field)} | {field.description} |")
    return "\n".join(rows) + "\n"


def _shown_default(field: FieldInfo) -> str:
    default = cast("object", field.default)
    if field.default_factory is not None or default is None:
        return ""
    if isinstance(default, tuple):
        return f"`{','.join(cast('tuple[str, ...]', default))}`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"
