"""How often a second every core does something, all at once: what a machine can do at most."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

LOOKS_S = 3.0
WARM_UP = 8

Rate = Callable[[Path, str, Sequence[Path]], float]
"""(bucket, trunk manifest as JSON, image files) to images per second, in a process of its own."""


def on_every_core(rate: Rate, bucket: Path, trunk_json: str, files: Sequence[Path]) -> float:
    """The sum of the rates of one process per core, all at once."""
    count = os.cpu_count() or 1
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        return sum(pool.map(rate, [bucket] * count, [trunk_json] * count, [files] * count))


def rate_of(work: Callable[[int], object], count: int) -> float:
    """Calls a second of `work`, with 0 to `count` - 1 in turn."""
    for n in range(WARM_UP):
        work(n % count)
    done, began_s = 0, time.perf_counter()
    while (spent_s := time.perf_counter() - began_s) < LOOKS_S:
        work(done % count)
        done += 1
    return done / spent_s
