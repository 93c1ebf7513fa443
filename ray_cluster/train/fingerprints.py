"""What a fit's bits depend on besides spec and data: this machine's arithmetic, and fixing it. No TensorFlow."""

import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from services.contracts.models import Fingerprint

THREADS = 1
"""Of BLAS and of TensorFlow. Another number may sum in another order."""


@cache
def make_deterministic() -> None:
    """Fixes whatever NumPy's bits depend on, for as long as the process lasts. Before a problem is computed in it."""
    threadpool_limits(THREADS)


def of_numpy() -> Fingerprint:
    """Of what NumPy computes here."""
    return Fingerprint(device=cpu_name(), trunk_engine=trunk_engine(), threads=THREADS, numpy=np.__version__)


def cpu_name() -> str:
    """`cpu:<architecture>:<what its vector units can do>`."""
    interesting = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        words = set()
    found = ",".join(word for word in interesting if word in words)
    return f"cpu:{platform.machine()}:{found}"


def trunk_engine() -> str:
    """Engine and version."""
    return f"litert-{version('ai-edge-litert')}"
