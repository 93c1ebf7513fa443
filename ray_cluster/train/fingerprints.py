"""What a fit's bits depend on besides spec and data: this machine's arithmetic, and fixing it. No TensorFlow."""

from functools import cache

import numpy as np
from threadpoolctl import threadpool_limits

from ray_cluster.vision.devices import cpu_name
from services.contracts.models import Fingerprint

THREADS = 1
"""Of BLAS and of TensorFlow. Another number may sum in another order."""


@cache
def make_deterministic() -> None:
    """Fixes whatever NumPy's bits depend on, for as long as the process lasts. Before a problem is computed in it."""
    threadpool_limits(THREADS)


def of_numpy(trunk_engine: str) -> Fingerprint:
    """Of what NumPy computes here, from features of an engine."""
    return Fingerprint(device=cpu_name(), trunk_engine=trunk_engine, threads=THREADS, numpy=np.__version__)
