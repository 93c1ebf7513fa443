"""Prints how this EC2 machine was bought, `spot` or `on-demand`: `python -m ray_cluster.spot.market`.

A node is started with `RAY_NODE_MARKET_TYPE=$(python -m ray_cluster.spot.market)`: which of the two the autoscaler got
is known on the machine only. Exit code 1, with the reason on standard error, where the metadata service does not say
within half a minute: a node must not join with a guess, because jobs choose nodes by it.

`--environment` prints that as the variable `RAY_NODE_MARKET_TYPE`, and beside it the machine's type for the receipts
of jobs, if the service has it: nothing depends on that.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from ray_cluster.spot.imds import Imds, ImdsUnavailable
from ray_cluster.spot.watcher import Metadata, WatcherSettings
from ray_cluster.train.machines import INSTANCE_TYPE_VARIABLE

LIFE_CYCLE_PATH = "/latest/meta-data/instance-life-cycle"
MARKET_VARIABLE = "RAY_NODE_MARKET_TYPE"
INSTANCE_TYPE_PATH = "/latest/meta-data/instance-type"
ANSWER_WITHIN_S = 30.0
AGAIN_AFTER_S = 1.0


def market_type(metadata: Metadata) -> str:
    """The value of Ray's label `ray.io/market-type`: everything but spot stays until it is ended.

    Raises `ImdsUnavailable` when the service does not answer, or has no such path.
    """
    answer = metadata.get(LIFE_CYCLE_PATH)
    if answer.body is None:
        raise ImdsUnavailable(f"{LIFE_CYCLE_PATH}: nothing there")
    return "spot" if answer.body.strip() == "spot" else "on-demand"


def instance_type(metadata: Metadata) -> str:
    """E.g. `g4dn.xlarge`. Raises `ImdsUnavailable` when the service does not answer, or has no such path."""
    answer = metadata.get(INSTANCE_TYPE_PATH)
    if answer.body is None:
        raise ImdsUnavailable(f"{INSTANCE_TYPE_PATH}: nothing there")
    return answer.body.strip()


def ask_until_it_says(
    metadata: Metadata,
    *,
    within_s: float = ANSWER_WITHIN_S,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> str:
    """`market_type`, repeated while the service does not answer. Raises `ImdsUnavailable` after `within_s`."""
    ends_at = clock() + within_s
    while True:
        try:
            return market_type(metadata)
        except ImdsUnavailable:
            if clock() + AGAIN_AFTER_S > ends_at:
                raise
        wait(AGAIN_AFTER_S)


def _variables(metadata: Metadata, market: str) -> list[str]:
    variables = [f"{MARKET_VARIABLE}={market}"]
    try:
        variables.append(f"{INSTANCE_TYPE_VARIABLE}={instance_type(metadata)}")
    except ImdsUnavailable as error:
        print(f"cannot tell of which type this machine is: {error}", file=sys.stderr)
    return variables


def main(argv: Sequence[str] = ()) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(description="Print how this machine was bought: spot or on-demand.")
    parser.add_argument("--environment", action="store_true", help="as variables for `env`, with the machine's type")
    as_variables = parser.parse_args(argv).environment
    settings = WatcherSettings()
    metadata = Imds(settings.imds_url, timeout_s=settings.timeout_s)
    try:
        market = ask_until_it_says(metadata)
        print(" ".join(_variables(metadata, market)) if as_variables else market)
    except ImdsUnavailable as error:
        print(f"cannot tell whether this is a spot machine: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
