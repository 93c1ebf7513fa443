"""Spot notices on a cluster of several nodes: the node drains, and replicas leave it without a failed request."""

import asyncio
import io
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from PIL import Image

from services.contracts.backbones import BackboneName
from services.contracts.errors import RekindleError
from services.contracts.models import TrunkManifest
from services.contracts.serving import application_name
from services.inference.direct import PROXY, ReplicaAddresses
from services.inference.predict.queries import ServedVersion
from services.inference.replicas import Replicas
from services.local.ports import free_ports
from services.local.ray_head import DIRECT_INGRESS
from services.runtime.objects import open_store
from services.training.reconciler.serve_applications import ServeTarget, desired_config
from tests.servers.fake_imds import FakeImds, fake_imds
from tests.servers.make_trunk import make_trunk
from tests.servers.published import publish, random_tail
from tests.servers.ray_nodes import HEAD_IP, Node, RayNodes, Role, ray_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

WAIT_S = 120
POLL_S = 0.5
NOTICE_S = 25
MARGIN_S = 10
PREDICT_DEADLINE_S = 30
CALLERS = 2
"""That ask without a break by each way."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    with ray_nodes(spots=2, env=DIRECT_INGRESS) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def trunk(cluster: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, TrunkManifest]:
    """A bucket with a model on a trunk."""
    store = open_store(tmp_path_factory.mktemp("bucket").as_uri())
    trunk = make_trunk(store, BackboneName.REKINDLE_TINY, 64, None, cluster.env)
    publish(store, trunk, "flowers", 1, random_tail(trunk.feature_dim, 3, 0), ["a", "b", "c"])
    return store.uri, trunk


def watch(cluster: RayNodes, node: Node, imds: FakeImds) -> None:
    """Starts the node's watcher, as a machine does when it boots."""
    env = {
        "REKINDLE_SPOT_IMDS_URL": imds.url,
        # The raylets of the other nodes, and of other clusters, are on this machine too.
        "REKINDLE_SPOT_NODE_IP": node.ip,
        "REKINDLE_SPOT_RAY_ADDRESS": cluster.address,
        "REKINDLE_SPOT_POLL_S": str(POLL_S),
        "REKINDLE_SPOT_MARGIN_S": str(MARGIN_S),
    }
    node.start([sys.executable, "-m", "ray_cluster.spot.watcher"], env)
    wait_for(lambda: "spot.watching" in node.log_text(), "the watcher")


def wait_for(condition: Callable[[], bool], what: str, node: Node | None = None) -> None:
    """`node` is whose log tells why, where it is in vain."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        log = node.log_text()[-4000:] if node else ""
        assert time.monotonic() < deadline, f"waited in vain for {what}\n{log}"
        time.sleep(0.1)


def test_replicas_move_before_the_node_goes_and_no_request_fails(
    cluster: RayNodes, trunk: tuple[str, TrunkManifest]
) -> None:
    bucket_uri, manifest = trunk
    (port,) = free_ports(1)
    config = desired_config([manifest.trunk_id], ServeTarget(bucket_uri, "0.0.0.0", port))
    url = f"{cluster.dashboard_url}/api/serve/applications/"
    httpx2.put(url, json=config, timeout=WAIT_S).raise_for_status()

    def is_running() -> bool:
        app = httpx2.get(url, timeout=30).json()["applications"].get(application_name(manifest.trunk_id))
        return app is not None and app["status"] == "RUNNING"

    wait_for(is_running, "the application")
    (replica,) = cluster.processes(Role.SERVE_REPLICA)
    node = cluster.node_of(replica.pid)
    assert [cluster.node_of(proxy.pid) for proxy in cluster.processes(Role.SERVE_PROXY)] == [cluster.head]
    with fake_imds() as imds:
        watch(cluster, node, imds)
        ways = Ways(f"http://{HEAD_IP}:{port}", cluster.dashboard_url)
        asyncio.run(ways.predict_while(manifest, lambda: lose(cluster, node, imds)))
    assert ways.failures == []
    assert ways.answered["proxy"] > 0
    assert ways.answered["direct"] > 0
    asked = [address for address in ways.addresses.asked if address != PROXY]
    assert len(asked) > ways.answered["direct"] / 2
    assert {urlsplit(address).hostname for address in asked} > {node.ip}, "before and after"
    assert node not in [cluster.node_of(each.pid) for each in cluster.processes(Role.SERVE_REPLICA)]


# A driver that keeps an actor on a node, says what it learns of drains, and lets the actor go when told.
_DRIVER = """
import os, sys, time
import ray
from ray_cluster.spot.drains import draining_nodes, my_node_id

ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)

@ray.remote(num_cpus=1, resources={f"node:{sys.argv[1]}": 0.001})
class Tenant:
    def where(self):
        return my_node_id(), draining_nodes()

tenant = Tenant.remote()
print("tenant", *ray.get(tenant.where.remote()), flush=True)
while not (drains := draining_nodes()):
    time.sleep(0.05)
print("drains", *[f"{node} {deadline.timestamp():.0f}" for node, deadline in drains.items()], flush=True)
assert ray.get(tenant.where.remote())[1] == drains
while not os.path.exists(sys.argv[2]):
    time.sleep(0.05)
ray.kill(tenant)
print("left", flush=True)
"""


def test_the_drain_command_waits_for_the_node_to_be_empty(cluster: RayNodes, tmp_path: Path) -> None:
    node = cluster.add_node()
    head = cluster.head
    assert head is not None
    leave = tmp_path / "leave"
    where = {"RAY_ADDRESS": cluster.address}
    head.start([sys.executable, "-c", _DRIVER, node.ip, leave.as_posix()], where)
    wait_for(lambda: f"tenant {node.node_id} {{}}" in head.log_text(), "the tenant")

    def drain(deadline_s: int) -> subprocess.Popen[str]:
        which = ["--ip", node.ip, "--address", cluster.address]
        command = [sys.executable, "-m", "ray_cluster.spot.drain", *which, "--deadline-s", str(deadline_s)]
        return subprocess.Popen(command, env={**cluster.env, **where}, stdout=subprocess.PIPE, text=True)

    asked_at = time.time()
    occupied = drain(3)
    wait_for(lambda: "\ndrains " in head.log_text(), "the drain to be seen")
    assert (occupied.wait(WAIT_S), "spot.not_empty" in occupied.communicate()[0]) == (1, True)
    seen = re.search(r"\ndrains (\S+) (\d+)", head.log_text())
    assert seen is not None
    assert seen[1] == node.node_id
    assert asked_at < int(seen[2]) < time.time() + 3
    emptied = drain(WAIT_S)
    assert emptied.stdout is not None
    assert "spot.draining" in emptied.stdout.readline()
    leave.touch()
    assert (emptied.wait(WAIT_S), "spot.drained" in emptied.communicate()[0]) == (0, True)
    wait_for(lambda: cluster.node_states()[node.node_id] == "DEAD", "the node to end")


def lose(cluster: RayNodes, node: Node, imds: FakeImds) -> None:
    """Gives notice, and takes the machine when it said."""
    ends_at = imds.notify(NOTICE_S)
    wait_for(lambda: "spot.draining" in node.log_text(), "the drain", node)
    wait_for(lambda: imds.now() >= ends_at, "the end")
    assert cluster.processes(Role.SERVE_REPLICA, node) == []
    cluster.kill_node(node)
    wait_for(lambda: cluster.node_states()[node.node_id] == "DEAD", "the node's death to be known")


class NotedAddresses(ReplicaAddresses):
    """Keeps which were asked, in order."""

    def __init__(self, dashboard_url: str) -> None:
        super().__init__(dashboard_url)
        self.asked: list[str] = []

    @contextmanager
    def for_call(self, route: str) -> Generator[str]:
        with super().for_call(route) as address:
            self.asked.append(address)
            yield address


@dataclass(slots=True)
class Ways:
    """Both ways from a gateway to the replicas, in use at the same time."""

    serve_url: str
    dashboard_url: str
    answered: Counter[str] = field(default_factory=Counter[str])
    failures: list[str] = field(default_factory=list[str])
    addresses: NotedAddresses = field(init=False)

    async def predict_while(self, trunk: TrunkManifest, disturb: Callable[[], None]) -> None:
        """Asks without a break until `disturb` is done."""
        self.addresses = NotedAddresses(self.dashboard_url)
        await self.addresses.refresh()
        self.addresses.start()
        ways = {
            "direct": Replicas(self.serve_url, self.addresses),
            "proxy": Replicas(self.serve_url, ReplicaAddresses(self.dashboard_url)),
        }
        buffer = io.BytesIO()
        Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(buffer, "PNG")
        served = ServedVersion(model_name="flowers", version=1, trunk_id=trunk.trunk_id)
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        async def ask_always(way: str) -> None:
            while not done.is_set():
                try:
                    await ways[way].predict(served, buffer.getvalue(), 3, loop.time() + PREDICT_DEADLINE_S)
                    self.answered[way] += 1
                except RekindleError as error:
                    self.failures.append(f"{way}: {error!r}")

        callers = [asyncio.create_task(ask_always(way)) for way in ways for _ in range(CALLERS)]
        try:
            await asyncio.to_thread(disturb)
        finally:
            done.set()
        await asyncio.gather(*callers)
        for replicas in ways.values():
            await replicas.aclose()
