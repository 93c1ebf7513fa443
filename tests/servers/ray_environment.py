"""The environment of the tests' Ray clusters: as `rekindle up` has it, without a token and without a GPU."""

import os
import sys
from pathlib import Path

from services.local.ray_head import DEATH_DETECTION

ROOT = Path(__file__).parents[2]


def ray_environment() -> dict[str, str]:
    """For the nodes of a cluster, and for drivers in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    threads = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "RAY_AUTH_MODE": "disabled"}
    # Jobs' entry points say `python -m …`, and must get this environment's Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {
        **kept,
        **threads,
        **quiet,
        **DEATH_DETECTION,
        "PATH": path,
        "PYTHONPATH": ROOT.as_posix(),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_prestart_worker_first_driver": "0",
        "REKINDLE_INSTANCE_TYPE": "local",
        "RAY_enable_worker_prestart": "0",
    }
