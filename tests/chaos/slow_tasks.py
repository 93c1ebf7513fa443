"""A driver whose one task never ends where it begins: `python -m tests.chaos.slow_tasks FOLDER`.

Each task writes a file that names its node; prints what they gave back.
"""

import sys
import time
from pathlib import Path

import ray

from ray_cluster.train.capacity import CapacityWatch
from ray_cluster.train.dispatch import TASK_CPUS, Parallelism, run_bounded
from ray_cluster.train.machines import Place
from ray_cluster.train.reporter import Reporter
from services.contracts.ids import new_job_id
from services.contracts.jobs import Stage
from services.contracts.resources import Resources
from services.runtime.objects import open_store

TASKS = 4


@ray.remote(num_cpus=TASK_CPUS)
def work(number: int, folder: Path) -> int:
    """The first to work on number 0 hangs."""
    node_id = ray.get_runtime_context().get_node_id()
    hangs = number == 0 and not list(folder.glob("0-*"))
    (folder / f"{number}-{node_id}").touch()
    while hangs:
        time.sleep(1)
    return number


def main(folder: Path) -> None:
    """Runs the tasks to the end of all."""
    ray.init(log_to_driver=False)

    def submit(number: int, place: Place) -> "ray.ObjectRef[int]":
        return work.options(label_selector=place.selector()).remote(number, folder)

    reporter = Reporter(open_store((folder / "bucket").as_uri()), new_job_id(), 1)
    capacity = CapacityWatch(Resources(), reporter)
    results = run_bounded(submit, range(TASKS), Parallelism(2, fixed=2), capacity, Stage.FEATURES)
    print(sorted(result for _, result in results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
