"""Ray's own commands for clusters, `ray up` and its like, as functions that raise one error."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from botocore.exceptions import BotoCoreError, ClientError
from ray.autoscaler import sdk
from ray.autoscaler.node_launch_exception import NodeLaunchException


class LaunchFailed(Exception):
    """A machine could not be had or reached, or a command on it failed; what was done stays, `up` may be repeated."""


def ray_up(cluster_yaml: Path) -> str:
    """Starts the head, or brings the one that runs up to date; its public address. Ray starts the workers itself.

    Raises `LaunchFailed`.
    """
    os.environ["RAY_UP_enable_autoscaler_v2"] = "1"  # noqa: SIM112 - Ray's name
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with _one_error("ray up"):
        sdk.create_or_update_cluster(str(cluster_yaml), no_config_cache=True)
        return sdk.get_head_node_ip(str(cluster_yaml))


def copy_to_head(cluster_yaml: Path, source: Path, target: str) -> None:
    """Copies a file to the head, for its container and, below Ray's own folder, for itself. Raises `LaunchFailed`."""
    with _one_error(f"copying {source.name} to the head"):
        sdk.rsync(str(cluster_yaml), source=str(source), target=target, down=False)


def run_on_head(cluster_yaml: Path, command: str) -> None:
    """Runs a shell command on the head itself, outside of its container. Raises `LaunchFailed`."""
    with _one_error("a command on the head"):
        sdk.run_on_cluster(str(cluster_yaml), cmd=command, run_env="host")


def ray_down(cluster_yaml: Path) -> None:
    """Ends the head and all workers. Raises `LaunchFailed`."""
    with _one_error("ray down"):
        sdk.teardown_cluster(str(cluster_yaml))


@contextmanager
def _one_error(what: str) -> Iterator[None]:
    try:
        yield
    except (click.ClickException, NodeLaunchException, ClientError, BotoCoreError, OSError) as error:
        raise LaunchFailed(f"{what} failed: {error}") from error
