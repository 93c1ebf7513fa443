"""The environment files of the containers: Ray's on every machine, and the gateway's on the head. Pure."""

from collections.abc import Mapping

from deploy.aws.settings import AwsSettings
from services.local.ray_head import CLUSTER_ENVIRONMENT

DASHBOARD_PORT = 8265
SERVE_PORT = 8000
GATEWAY_HOME = "/var/lib/rekindle"
TLS_FOLDER = "/etc/rekindle/tls"
"""In the gateway's container."""
TLS_FILES = ("certificate.pem", "key.pem")


def cluster_environment(settings: AwsSettings, ray_token: str) -> dict[str, str]:
    """Of Ray's container, on the head and on the workers; everything that Ray starts inherits it."""
    return {
        **CLUSTER_ENVIRONMENT,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": ray_token,
        "AWS_DEFAULT_REGION": settings.region,
        # A launch that gave fewer machines than asked for is repeated for the others after this, and not after 10 min.
        "RAY_AUTOSCALER_RECONCILE_REQUEST_STATUS_TIMEOUT_S": "120",
    }


def gateway_environment(settings: AwsSettings, ray_token: str, database_url: str | None) -> dict[str, str]:
    """Of the gateway's container. Without a database URL it keeps SQLite on the head's disk."""
    database = {"REKINDLE_DATABASE_URL": database_url} if database_url else {}
    certificate, key = (f"{TLS_FOLDER}/{name}" for name in TLS_FILES)
    tls = {"REKINDLE_TLS_CERTIFICATE": certificate, "REKINDLE_TLS_KEY": key} if settings.tls_files else {}
    return {
        "REKINDLE_LOG_FORMAT": "json",
        **settings.gateway,
        **database,
        **tls,
        "REKINDLE_HOME": GATEWAY_HOME,
        "REKINDLE_BUCKET": settings.bucket,
        "REKINDLE_ALLOWED_SOURCES": ",".join((settings.bucket, *settings.sources)),
        "REKINDLE_RAY_DASHBOARD_URL": f"http://127.0.0.1:{DASHBOARD_PORT}",
        "REKINDLE_RAY_TOKEN": ray_token,
        "REKINDLE_SERVE_URL": f"http://127.0.0.1:{SERVE_PORT}",
        "REKINDLE_SERVE_HOST": "127.0.0.1",
        "REKINDLE_SERVE_PORT": str(SERVE_PORT),
        "REKINDLE_HOST": "0.0.0.0",  # noqa: S104 - behind the security group, and with API keys
        "REKINDLE_PORT": str(settings.api_port),
        "AWS_DEFAULT_REGION": settings.region,
    }


def env_file(environment: Mapping[str, str]) -> str:
    """What `docker run --env-file` reads: a variable a line, nothing quoted.

    Raises `ValueError` for a value with a line break, which such a file cannot hold.
    """
    broken = sorted(name for name, value in environment.items() if "\n" in value or "\r" in value)
    if broken:
        raise ValueError(f"{', '.join(broken)}: a value with a line break")
    return "".join(f"{name}={value}\n" for name, value in sorted(environment.items()))
