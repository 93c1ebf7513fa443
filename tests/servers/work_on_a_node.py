"""A driver with one task: `python -m tests.servers.work_on_a_node LABELS [MARKER]`.

The task needs a node with the labels (a JSON object). With the name of a file that is not there it writes its node's
id to it, and works until its node is lost; then it is begun again elsewhere, and ends at once. The result is a line of
JSON: the id and the labels of the node on which it ended.
"""

import json
import sys
import time
from pathlib import Path

import ray


@ray.remote(num_cpus=0.9, max_retries=-1)
def work(marker: Path | None) -> dict[str, object]:
    context = ray.get_runtime_context()
    if marker and not marker.exists():
        fresh = marker.with_suffix(".new")
        fresh.write_text(context.get_node_id())
        fresh.rename(marker)
        time.sleep(3600)
    return {"node_id": context.get_node_id(), "labels": context.get_node_labels()}


def main() -> None:
    ray.init(log_to_driver=False)
    marker = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    print(json.dumps(ray.get(work.options(label_selector=json.loads(sys.argv[1])).remote(marker))), flush=True)


if __name__ == "__main__":
    main()
