"""A spare driver: `python -m ray_cluster.train.spare --bucket URI --id SUBMISSION_ID`.

The entrypoint of a Ray job that begins before there is anything to do: it connects, has its first processes started on
its own node, and waits for the attempt that it is given in the bucket (`contracts.spare`). From then on it is that
attempt. It ends where another spare driver is the newest, and may be killed at any moment.

Nothing is done on other nodes, which may be there for a job only, and cost as long as anything runs on them.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
import setproctitle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_cluster.train import attempt, tasks, trainers
from ray_cluster.train.cluster_view import ClusterUnknown
from ray_cluster.train.cluster_view import look as look_at_cluster
from ray_cluster.train.dispatch import TASK_CPUS
from ray_cluster.train.driver import connect
from ray_cluster.train.gathering import Gathering
from ray_cluster.train.machines import NodeView, Place, suitable
from services.contracts import names
from services.contracts.errors import NotFound, RetryLater
from services.contracts.ids import DatasetId
from services.contracts.spare import GivenAttempt, SpareDriver
from services.runtime.objects import ObjectStore, StoredObject, open_store

LOOK_S = 0.25
"""How often it looks for its attempt, which so begins half of that later on average."""
WARM_UP_S = 10.0
"""Processes that have not started by then are not worth waiting for: an attempt may."""

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Waits in the Ray cluster that RAY_ADDRESS names, runs the attempt, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Wait for an attempt of a job, and run it.")
    parser.add_argument("--bucket", required=True, help="s3://bucket/prefix or file:///folder")
    parser.add_argument("--id", required=True, help="the Ray job's submission id")
    arguments = parser.parse_args(argv)
    connect()
    store = open_store(arguments.bucket)
    wait, node = Wait(store, arguments.id), OwnNode(arguments.bucket)
    if wait.goes_on:
        node.warm_up()
        wait.tell_ready()
    given = wait.until_given(node.keep)
    if given is None:
        return 0
    # A title has as much room as the command line had: the bucket comes last.
    shown = ["--job", given.job_id, "--attempt", str(given.attempt), "--bucket", arguments.bucket]
    setproctitle.setproctitle(" ".join(["python -m ray_cluster.train.attempt", *shown]))
    _log.info("attempt %d of %s begins", given.attempt, given.job_id)
    return attempt.run(attempt.Arguments(arguments.bucket, given.job_id, given.attempt))


class Wait:
    """One spare driver's wait for its attempt."""

    def __init__(self, store: ObjectStore, spare_id: str) -> None:
        self._store = store
        self._id = spare_id
        self._trouble = ""

    @property
    def goes_on(self) -> bool:
        """Whether it may be given an attempt, and has not been so far."""
        newest = self._look()
        return newest is None or self._may_be_given(newest[0])

    def tell_ready(self) -> None:
        """Says that the attempt can begin at once. Nobody relies on it, so where that fails it is left unsaid."""
        newest = self._look()
        if newest is None or not self._may_be_given(newest[0]):
            return
        spare, current = newest
        ready = spare.model_copy(update={"ready": True}).model_dump_json().encode()
        try:
            self._store.put(names.spare_driver(), ready, if_match=current.etag)
        except RetryLater as error:
            _log.warning("cannot tell that it is ready: %s", error)

    def until_given(self, meanwhile: Callable[[], None]) -> GivenAttempt | None:
        """The attempt; None where another spare driver is the newest. Calls `meanwhile` between its looks."""
        while True:
            newest = self._look()
            if newest is not None:
                spare, _ = newest
                if spare.submission_id != self._id:
                    _log.info("another spare driver is the newest: %s", spare.submission_id)
                    return None
                if spare.given is not None:
                    return spare.given
            meanwhile()
            time.sleep(LOOK_S)

    def _may_be_given(self, newest: SpareDriver) -> bool:
        return newest.submission_id == self._id and newest.given is None

    def _look(self) -> tuple[SpareDriver, StoredObject] | None:
        """What the bucket says now; None where it says nothing, or does not answer: then a later look may."""
        try:
            current = self._store.get_with_etag(names.spare_driver())
        except (NotFound, RetryLater) as error:
            if self._trouble != str(error):
                self._trouble = str(error)
                _log.warning("cannot look for an attempt: %s", error)
            return None
        return SpareDriver.model_validate_json(current.data), current


class OwnNode:
    """The node that this driver runs on, where it is one that takes tasks."""

    def __init__(self, bucket_uri: str) -> None:
        self._bucket_uri = bucket_uri
        self._keep_at_s = 0.0

    def warm_up(self) -> None:
        """Has the processes of the first tasks started, as many as can run at a time, and a trainer. Ray keeps the
        former for this driver."""
        with _harmless():
            node = _own_node()
            if node is not None:
                self._start_processes(node)
        self.keep()

    def _start_processes(self, node: NodeView) -> None:
        count = min(int(node.free_cpus / TASK_CPUS), os.cpu_count() or 1)
        if not count:
            return
        here = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        with tempfile.TemporaryDirectory(prefix="rekindle-spare-") as folder:
            gathering = Gathering(Path(folder), count, WARM_UP_S)
            warm_up = tasks.warm_up_task.options(scheduling_strategy=here)
            started = [warm_up.remote(self._bucket_uri, gathering) for _ in range(count)]
            ray.wait(started, num_returns=count, timeout=2 * WARM_UP_S)
        # Of no files: from then on Ray knows the task that comes first.
        nothing = tasks.inspect_task.options(scheduling_strategy=here)
        ray.get(nothing.remote(self._bucket_uri, self._bucket_uri, DatasetId(""), [], None), timeout=WARM_UP_S)

    def keep(self) -> None:
        """Call it again and again: a trainer leaves when nobody wants it for a while."""
        if time.monotonic() < self._keep_at_s:
            return
        with _harmless():
            node = _own_node()
            if node is not None:
                trainers.keep_one(node.node_id)
        self._keep_at_s = time.monotonic() + trainers.idle_s() / 3


@contextmanager
def _harmless() -> Generator[None]:
    """Without what was to be started an attempt begins later, and that is all."""
    try:
        yield
    except (RayError, ClusterUnknown) as error:
        _log.warning("what the attempt will need is not started: %s", error)


def _own_node() -> NodeView | None:
    """None where it takes no tasks, or is about to go."""
    node_id = ray.get_runtime_context().get_node_id()
    return next((node for node in suitable(look_at_cluster(), 1, Place()) if node.node_id == node_id), None)


if __name__ == "__main__":
    sys.exit(main())
