"""How the local Ray head is started: one node, on loopback only, behind a token."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.local.ports import LOOPBACK, free_ports
from services.local.processes import MARKER_VARIABLE

MIN_LOGICAL_CPUS = 8
OBJECT_STORE_BYTES = 200_000_000
"""Images and features go through the bucket, not through Ray's object store."""

DEATH_DETECTION = {
    # Ray's own 3 s, 10 s and 5 times take a killed node 13 s to be noticed, and a frozen one over a minute. With these
    # a killed one takes about 4 s, and a live one may stand still for over 10 s, as on a crowded machine it does.
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}
"""How soon a lost node counts as dead. Of the whole cluster's environment, and of its head's above all."""

DIRECT_INGRESS = {
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    # A replica that is going to end answers for so long after it is listed no more.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
}
"""Replicas listen themselves, so that predictions need not go through Serve's one proxy."""

CLUSTER_ENVIRONMENT = {
    **DEATH_DETECTION,
    # One thread per process: the work is spread over processes, and the thread count changes a result's bits.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # How soon Ray Train notices a dead worker.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # A task without GPUs sees those of the machine all the same, as TensorFlow should: work asks for CPUs.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Of every process of every cluster, wherever it runs."""

_CLUSTER_DEFAULTS = {
    **CLUSTER_ENVIRONMENT,
    # Logical CPUs are many more than cores here; idle workers for each would cost 60 MB apiece.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_num_workers_soft_limit": "2",
    "RAY_idle_worker_killing_time_threshold_ms": "5000",
    **DIRECT_INGRESS,
    # What a replica does between a request's bytes and its threads takes no time worth a loop of its own.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # For the receipts of jobs: this machine costs nothing.
    "REKINDLE_INSTANCE_TYPE": "local",
}
_FOREIGN = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH", "RAY_JOB_CONFIG_JSON_ENV_VAR")
"""Would lead to another cluster, or another cluster's token."""


@dataclass(frozen=True, slots=True)
class RayPorts:
    """Ports of the head; all others Ray takes from the system."""

    dashboard: int
    client: int
    agent: int
    serve: int


def choose_ray_ports() -> RayPorts:
    dashboard, client, agent, serve = free_ports(4)
    return RayPorts(dashboard, client, agent, serve)


def logical_cpus() -> int:
    """More than a small machine has cores: most of what a job's processes do is wait for each other."""
    return max(MIN_LOGICAL_CPUS, os.cpu_count() or 1)


def ray_command(ports: RayPorts, temp_dir: Path) -> list[str]:
    """`ray start` in the foreground; it ends all of Ray's processes when it ends."""
    options = {
        "node-ip-address": LOOPBACK,
        "port": 0,
        "dashboard-host": LOOPBACK,
        "dashboard-port": ports.dashboard,
        "dashboard-agent-listen-port": ports.agent,
        "ray-client-server-port": ports.client,  # cannot be switched off; its default is the same for all stacks
        "min-worker-port": 0,
        "max-worker-port": 0,
        "temp-dir": temp_dir,
        "num-cpus": logical_cpus(),
        "object-store-memory": OBJECT_STORE_BYTES,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats", *flags]


def child_environment(inherited: Mapping[str, str], marker: str, ray_token: str, temp_dir: Path) -> dict[str, str]:
    """The environment of every process of the stack."""
    environment = {name: value for name, value in inherited.items() if name not in _FOREIGN}
    bin_folder = str(Path(sys.executable).parent)
    return {
        **_CLUSTER_DEFAULTS,
        **environment,
        # Entry points say `python -m …`, and must get this environment's Python.
        "PATH": f"{bin_folder}{os.pathsep}{environment.get('PATH', os.defpath)}",
        "VIRTUAL_ENV": sys.prefix,
        "PYTHONUNBUFFERED": "1",
        # Any user of this machine can reach a loopback port, and the Jobs API runs whatever it is sent.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": ray_token,
        # Its one effect on Linux: Ray takes the loopback address as given instead of the machine's public one.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # What killed processes leave there goes when the stack ends.
        "TMPDIR": str(temp_dir),
        MARKER_VARIABLE: marker,
    }
