"""A whole deployment on this machine: Ray head and spot nodes, S3, PostgreSQL, two training gateways.

All of it lives in a folder and on ports of its own, so that two deployments do not meet, and is gone with the block
that made it. What runs on a machine (`tests.servers.machine`) also goes when this process is killed.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil

from services.client import Rekindle
from services.local.ports import free_ports
from tests.servers.fake_imds import FakeImds, fake_imds
from tests.servers.postgres import PostgresProcess
from tests.servers.ray_environment import ROOT
from tests.servers.ray_nodes import Node, RayNodes, ray_nodes
from tests.servers.s3 import S3Server

START_S = 120.0
CLIENT_PATIENCE_S = 300.0
"""A gateway that is struck is back long before."""
CLIENT_TIMEOUT_S = 15.0
SPOT_CPUS = 2
RAY_TRAIN_AFTER_S = 5
"""Sooner than by default, so that fits are met under Ray Train, and before."""
LOCALHOST = "127.0.0.1"


class DeploymentFailed(Exception):
    """A part did not start or did not come back; the message has the end of its log."""


@dataclass(slots=True)
class Gateway:
    """One training gateway, which may be killed and started again."""

    name: str
    port: int
    env: dict[str, str]
    control: Node
    process: psutil.Process | None = None

    @property
    def url(self) -> str:
        return f"http://{LOCALHOST}:{self.port}"

    def start(self) -> None:
        """Starts it and waits until it is ready to answer."""
        self.process = self.control.start([sys.executable, "-m", "services.training.main"], self.env)
        wait_for(self._is_ready, f"{self.name} to be ready", self.control.log_text)

    def kill(self) -> None:
        if self.process is not None:
            kill(self.process)
            self.process = None

    def client(self) -> Rekindle:
        """A client that waits through what happens to the gateway."""
        return Rekindle(self.url, timeout_s=CLIENT_TIMEOUT_S, patience_s=CLIENT_PATIENCE_S)

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            return httpx2.get(f"{self.url}/healthz", timeout=5, trust_env=False).is_success
        return False


@dataclass(slots=True)
class S3Front:
    """The S3 server's port: shut for an outage, during which the server keeps what it holds."""

    port: int
    server_port: int
    control: Node
    process: psutil.Process | None = None

    def open(self) -> None:
        command = [sys.executable, "-m", "tests.chaos.runner.tcp_front", str(self.port), str(self.server_port)]
        self.process = self.control.start(command)
        health = f"http://{LOCALHOST}:{self.port}/moto-api/data.json"
        wait_for(lambda: answers(health), "the S3 server", self.control.log_text)

    def shut(self) -> None:
        if self.process is not None:
            kill(self.process)
            self.process = None


@dataclass(slots=True)
class Deployment:
    """A running deployment."""

    folder: Path
    ray: RayNodes
    postgres: PostgresProcess
    database: str
    s3: S3Front
    gateways: list[Gateway]
    reference: Gateway
    """Has a bucket prefix and a database of its own, for the undisturbed runs. Not started."""
    node_count: int
    """Spot nodes at the beginning."""
    control: Node
    _until_the_end: contextlib.ExitStack
    _metadata: dict[str, FakeImds] = field(default_factory=dict[str, FakeImds])

    def leader(self) -> Gateway | None:
        """The gateway that holds the reconciler's lease, or None while nobody does."""
        query = "SELECT holder FROM leases WHERE name = 'reconciler'"
        with contextlib.suppress(subprocess.CalledProcessError):
            holder = self.postgres.server.run("psql", "-tA", "-c", query, self.database).strip()
            for gateway in self.gateways:
                # A holder is named machine-pid-random.
                if gateway.process is not None and f"-{gateway.process.pid}-" in holder:
                    return gateway
        return None

    def add_node(self) -> Node:
        """A spot node with its watcher and metadata service, as the autoscaler would bring one."""
        imds = self._until_the_end.enter_context(fake_imds())
        node = self.ray.add_node(num_cpus=SPOT_CPUS)
        self._metadata[node.name] = imds
        where = {"NODE_ID": node.node_id, "NODE_IP": node.ip, "RAY_ADDRESS": self.ray.address}
        settings = {**where, "IMDS_URL": imds.url, "POLL_S": "0.5", "MARGIN_S": "2"}
        watcher_env = {f"REKINDLE_SPOT_{name}": value for name, value in settings.items()}
        node.start([sys.executable, "-m", "ray_cluster.spot.watcher"], watcher_env)
        return node

    def give_notice(self, node: Node, in_s: float) -> None:
        """The node's metadata service says from now on that the machine goes `in_s` seconds from now."""
        self._metadata[node.name].notify(in_s)


@contextlib.contextmanager
def deployment(*, nodes: int = 3, max_running_jobs: int = 2) -> Iterator[Deployment]:
    """Starts everything but the reference gateway; ends it with the block, whatever happens."""
    with contextlib.ExitStack() as stack:
        # Not pytest's own folders: PostgreSQL may have to run as another user, and sockets' paths must be short.
        folder = Path(tempfile.mkdtemp(prefix="rk-chaos-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        control = stack.enter_context(_control_machine(folder / "control"))
        (folder / "postgres").mkdir()
        postgres = stack.enter_context(PostgresProcess(folder / "postgres"))
        database = postgres.server.create_database()

        front_port, s3_port, *gateway_ports = free_ports(5)
        control.start([sys.executable, "-m", "tests.servers.moto_s3", "-H", LOCALHOST, "-p", str(s3_port)])
        s3 = S3Front(front_port, s3_port, control)
        server = S3Server(f"http://{LOCALHOST}:{s3_port}", 0)
        wait_for(lambda: answers(f"{server.endpoint_url}/moto-api/data.json"), "the S3 server", control.log_text)
        bucket = server.create_bucket()
        s3.open()
        # Everybody goes through the front, this process as well.
        through_front = S3Server(f"http://{LOCALHOST}:{front_port}", 0).env
        stack.enter_context(_environment(through_front))

        ray_env = {**through_front, "REKINDLE_RAY_TRAIN_AFTER_S": str(RAY_TRAIN_AFTER_S)}
        ray = stack.enter_context(ray_nodes(spots=0, persistent_head=True, env=ray_env))
        shared = {
            **clean_environment(),
            **through_front,
            "REKINDLE_RAY_DASHBOARD_URL": ray.dashboard_url,
            "REKINDLE_SERVE_PORT": str(free_ports(1)[0]),
            "REKINDLE_RECONCILE_INTERVAL_S": "0.3",
            "REKINDLE_LEASE_S": "4",
            "REKINDLE_RETRY_INITIAL_S": "0.5",
            "REKINDLE_RETRY_MAX_S": "10",
            "REKINDLE_MAX_RUNNING_JOBS": str(max_running_jobs),
        }

        def gateway(name: str, port: int, database_url: str, prefix: str) -> Gateway:
            own = {
                "REKINDLE_HOME": str(folder / name),
                "REKINDLE_PORT": str(port),
                "REKINDLE_DATABASE_URL": database_url,
                "REKINDLE_BUCKET": f"{bucket}/{prefix}",
            }
            return Gateway(name, port, {**shared, **own}, control)

        gateways = [
            gateway(f"gateway-{number}", port, postgres.server.url(database), "chaos")
            for number, port in enumerate(gateway_ports[:2], 1)
        ]
        sqlite_url = f"sqlite+aiosqlite:///{folder / 'reference.db'}"
        reference = gateway("reference", gateway_ports[2], sqlite_url, "reference")
        running = Deployment(folder, ray, postgres, database, s3, gateways, reference, nodes, control, stack)
        for _ in range(nodes):
            running.add_node()
        yield running


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of Rekindle, Ray or AWS."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("REKINDLE_", "RAY_", "AWS_"))}


def wait_for(condition: Callable[[], object], what: str, log: Callable[[], str], within_s: float = START_S) -> None:
    """Polls. Raises `DeploymentFailed` when it takes too long."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise DeploymentFailed(f"waited {within_s:g} s in vain for {what}:\n{log()[-4000:]}")
        time.sleep(0.1)


def answers(url: str) -> bool:
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.get(url, timeout=5, trust_env=False).is_success
    return False


def kill(process: psutil.Process) -> None:
    """SIGKILL; returns when it is gone. One that is gone already is no error."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
        psutil.wait_procs([process], timeout=10)


@contextlib.contextmanager
def _control_machine(folder: Path) -> Iterator[Node]:
    """A machine for what is neither Ray nor PostgreSQL."""
    folder.mkdir()
    root = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.machine"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**clean_environment(), "PYTHONPATH": ROOT.as_posix()},
        cwd=ROOT,
        start_new_session=True,
    )
    node = Node("control", LOCALHOST, {**clean_environment(), "PYTHONPATH": ROOT.as_posix()}, folder, root)
    try:
        yield node
    finally:
        for process in node.processes():
            kill(process)
        root.send_signal(signal.SIGKILL)
        root.wait(10)


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with these changes, and as it was afterwards."""
    removed = [name for name in os.environ if name.startswith("AWS_")]
    before = {name: os.environ.get(name) for name in {*changes, *removed}}
    for name in removed:
        del os.environ[name]
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
