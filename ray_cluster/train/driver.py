"""What every entry point of a Ray job begins with."""

import logging
import signal
import sys

import ray


def connect() -> None:
    """Logs to standard output, and connects to the cluster that RAY_ADDRESS names; SIGTERM ends the process at once."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    ray.init(address="auto", log_to_driver=True)
    # Ray's own handler tidies up for seconds. There is nothing to tidy up: let `ray job stop` end us at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
