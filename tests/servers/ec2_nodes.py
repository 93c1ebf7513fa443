"""Machines of the played EC2 that run Ray: every instance of a worker becomes a node of a cluster on this machine.

Ray's autoscaler on the cluster's head launches and ends instances; what it would do by ssh is done here, with the
commands that stand in the cluster's YAML. Each machine has a metadata service of its own. Left out are Docker and ssh.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from ray_cluster.spot.market import INSTANCE_TYPE_PATH, LIFE_CYCLE_PATH
from services.local.ports import free_ports
from tests.servers.ec2 import FakeEc2
from tests.servers.fake_imds import FakeImds, fake_imds
from tests.servers.ray_nodes import HEAD_IP, Node, RayNodes, node_flags

LOOK_EVERY_S = 0.5
RAY_PORT = ":6379"


@dataclass(slots=True)
class Machine:
    """An instance that runs."""

    instance: dict[str, Any]
    """As EC2 described it when it came."""
    node_type: str
    node: Node
    imds: FakeImds


@dataclass(slots=True)
class Ec2Nodes:
    """The machines; one thread looks at EC2, others may read."""

    ec2: FakeEc2
    cluster: RayNodes
    config: Mapping[str, Any]
    """The cluster's YAML."""
    running: dict[str, Machine] = field(default_factory=dict[str, Machine])
    """By the instance's id."""
    came: list[Machine] = field(default_factory=list[Machine])
    """All that ever ran, in order."""

    def look(self, services: ExitStack) -> None:
        """Starts what is new and kills what has gone."""
        there = {each["InstanceId"]: each for each in self.ec2.instances()}
        for instance_id in self.running.keys() - there.keys():
            self.cluster.kill_node(self.running.pop(instance_id).node)
        for instance_id, instance in there.items():
            tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            if instance_id not in self.running and tags["ray-node-type"] == "worker":
                machine = self._boot(instance, tags["ray-user-node-type"], services.enter_context(fake_imds()))
                self.running[instance_id] = machine
                self.came.append(machine)

    def _boot(self, instance: dict[str, Any], node_type: str, imds: FakeImds) -> Machine:
        imds.bodies[LIFE_CYCLE_PATH] = instance.get("InstanceLifecycle", "on-demand")
        imds.bodies[INSTANCE_TYPE_PATH] = instance["InstanceType"]
        declared = self.config["available_node_types"][node_type]
        env = {
            "RAY_HEAD_IP": HEAD_IP,
            "RAY_CLOUD_INSTANCE_ID": instance["InstanceId"],
            "RAY_NODE_TYPE_NAME": node_type,
            "RAY_OVERRIDE_RESOURCES": json.dumps(declared["resources"]),
            "CUDA_VISIBLE_DEVICES": "0",  # Ray believes that there is one
            "REKINDLE_SPOT_IMDS_URL": imds.url,
            "REKINDLE_SPOT_POLL_S": "1",
            **({"RAY_OVERRIDE_LABELS": json.dumps(declared["labels"])} if declared["labels"] else {}),
        }
        node = self.cluster.add_machine(env)
        _stop, start, watch = self.config["worker_start_ray_commands"]
        assert RAY_PORT in start
        here = node_flags(node.ip, node.temp_dir, {"dashboard-agent-listen-port": free_ports(1)[0], "block": None})
        address = f":{self.cluster.gcs_port}"
        node.start(["bash", "-c", f"{start.replace(RAY_PORT, address)} {' '.join(here)}"])
        # Several raylets run on this machine, which on one of EC2 do not. The shell stays, to be told apart from none.
        watch = f"{watch.replace('/tmp/', f'{node.temp_dir}/')} exec sleep infinity"
        node.start(["bash", "-c", watch], {"REKINDLE_SPOT_NODE_IP": node.ip})
        return Machine(instance, node_type, node, imds)


@contextmanager
def ec2_nodes(ec2: FakeEc2, cluster: RayNodes, config: Mapping[str, Any]) -> Iterator[Ec2Nodes]:
    """Keeps the cluster's nodes like EC2's instances until the block ends; raises then what went wrong meanwhile."""
    machines = Ec2Nodes(ec2, cluster, config)
    stopping = threading.Event()
    failures: list[Exception] = []

    def keep(services: ExitStack) -> None:
        try:
            while not stopping.wait(LOOK_EVERY_S):
                machines.look(services)
        except Exception as error:  # noqa: BLE001 - told at the end
            failures.append(error)

    with ExitStack() as services:
        thread = threading.Thread(target=keep, args=(services,))
        thread.start()
        try:
            yield machines
        finally:
            stopping.set()
            thread.join()
    if failures:
        raise failures[0]
