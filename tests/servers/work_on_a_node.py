"""A driver with one task that any node can run: `python -m tests.servers.work_on_a_node`.

Its result is a line of JSON: the id and the labels of the node on which it ran.
"""

import json

import ray


@ray.remote(num_cpus=0.9, max_retries=-1)
def work() -> dict[str, object]:
    context = ray.get_runtime_context()
    return {"node_id": context.get_node_id(), "labels": context.get_node_labels()}


def main() -> None:
    ray.init(log_to_driver=False)
    print(json.dumps(ray.get(work.remote())), flush=True)


if __name__ == "__main__":
    main()
