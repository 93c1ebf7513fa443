"""A Ray cluster of several nodes on this machine: a head that runs no work, and nodes that can vanish.

    with ray_nodes(spots=2) as cluster:
        (worker,) = cluster.processes(Role.TRAIN_WORKER)
        cluster.kill_node(cluster.node_of(worker.pid))

Each node has an address of its own (127.0.0.2 is the head's), a temporary folder of its own and a `machine` process at
its root, below which everything stays that was started on the node: so it is killed or frozen as a whole. What a
process does is told by the name that Ray gives it.

Three things differ from a cluster of machines. Serve's proxies would fight for one port: deploy with `HeadOnly`. A
driver belongs to the head's node wherever it runs: Ray looks for nodes on its machine and prefers the head. And a
killed node's connections are reset, while those of a machine that vanishes go silent: `freeze_node` is like that.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from services.local.ports import free_ports
from tests.servers.ray_environment import ROOT, ray_environment

START_TIMEOUT_S = 120
START_TRIES = 5
"""`ray start` gives up after 30 s, and its raylet after 15 s without the dashboard's agent, which a crowded machine may
take to begin; something starts it again in real life."""
HEAD_IP = "127.0.0.2"
"""Not 127.0.0.1, in whose place Ray puts the machine's public address."""
_OBJECT_STORE_BYTES = 80 * 1024 * 1024


class Role(StrEnum):
    """What a process does; the value is a pattern for the beginning of its title or command line."""

    RAYLET = r"\S*/raylet/raylet "
    GCS = r"\S*/gcs/gcs_server "
    TRAIN_WORKER = r"ray::(\S+:)?RayTrainWorker\b"
    TRAINER = r"ray::(\S+:)?Trainer\b"
    TRAIN_CONTROLLER = r"ray::(\S+:)?TrainController\b"
    JOB_SUPERVISOR = r"ray::(\S+:)?JobSupervisor\b"
    JOB_DRIVER = r"\S*python\S* .*-m ray_cluster\.train\.attempt\b"
    SPARE_DRIVER = r"\S*python\S* .*-m ray_cluster\.train\.spare\b"
    LABELLER = r"ray::label_task\b"
    SERVE_REPLICA = r"ray::ServeReplica\b"
    SERVE_PROXY = r"ray::(\S+:)?ProxyActor\b"
    SERVE_CONTROLLER = r"ray::(\S+:)?ServeController\b"


@dataclass(eq=False, slots=True)
class Node:
    """A node's processes; alive until it is killed."""

    name: str
    ip: str
    env: dict[str, str]
    """Of everything that runs on it."""
    temp_dir: Path
    root: subprocess.Popen[bytes]
    node_id: str = ""
    """Ray's, in hex."""
    _logs: Iterator[int] = field(default_factory=count)

    @property
    def alive(self) -> bool:
        """Whether the machine is; its raylet may have ended."""
        return self.root.poll() is None

    def start(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> psutil.Process:
        """A process of this node, e.g. its spot watcher; it is killed and frozen with it. `log_text` has its output."""
        assert self.root.stdin is not None
        assert self.root.stdout is not None
        log = self.temp_dir / f"process-{next(self._logs)}.log"
        request = {"command": list(command), "env": {**self.env, **(env or {})}, "log": log.as_posix()}
        self.root.stdin.write(json.dumps(request).encode() + b"\n")
        self.root.stdin.flush()
        return psutil.Process(int(self.root.stdout.readline()))

    def log_text(self) -> str:
        """What the processes that `start` started wrote."""
        return "".join(log.read_text(errors="replace") for log in sorted(self.temp_dir.glob("process-*.log")))

    def processes(self) -> list[psutil.Process]:
        """All living processes of the node but its root."""
        try:
            return [each for each in psutil.Process(self.root.pid).children(recursive=True) if _lives(each)]
        except psutil.NoSuchProcess:
            return []


@dataclass(slots=True)
class RayNodes:
    """A running cluster. For one thread at a time."""

    env: dict[str, str]
    """For processes that are drivers in this cluster."""
    temp_dir: Path
    gcs_port: int
    dashboard_port: int
    persistent_head: bool
    head: Node | None = None
    """None while it is killed."""
    nodes: list[Node] = field(default_factory=list)
    """Those but the head that were not killed."""
    head_options: Mapping[str, object] = field(default_factory=dict[str, object])
    """More of `ray start` on the head."""
    _numbers: Iterator[int] = field(default_factory=lambda: count(3))

    @property
    def address(self) -> str:
        """Of the GCS, for `ray.init` and RAY_ADDRESS. The same after the head was restarted."""
        return f"{HEAD_IP}:{self.gcs_port}"

    @property
    def dashboard_url(self) -> str:
        """Of the dashboard, Jobs API and Serve's API. The same after the head was restarted."""
        return f"http://{HEAD_IP}:{self.dashboard_port}"

    # --- nodes ---

    def add_node(self, *, num_cpus: int = 4, market: str = "spot", env: Mapping[str, str] | None = None) -> Node:
        """A new node, once the cluster knows it.

        `market` is its label `ray.io/market-type` and its REKINDLE_MARKET.
        """
        own = {"RAY_NODE_MARKET_TYPE": market, "REKINDLE_MARKET": market, **(env or {})}
        for _ in range(START_TRIES):
            node = self.add_machine(own)
            options = {"address": self.address, "num-cpus": num_cpus, "dashboard-agent-listen-port": free_ports(1)[0]}
            ray = node.start(_ray_start(node.ip, node.temp_dir, options))
            if _came(partial(self._learn_id, node), ray):
                return node
            log = node.log_text()[-4000:]
            self.kill_node(node)
        pytest.fail(f"waited in vain for a node to join:\n{log}")

    def add_machine(self, env: Mapping[str, str]) -> Node:
        """A machine with an address of its own, on which nothing runs yet."""
        number = next(self._numbers)
        node = self._machine(f"n{number}", f"127.0.0.{number}", env)
        self.nodes.append(node)
        return node

    def kill_node(self, node: Node) -> None:
        """SIGKILL for everything on the node at once: all stand still first, so that nobody sees another die."""
        _vanish(node)
        if node in self.nodes:
            self.nodes.remove(node)

    def freeze_node(self, node: Node) -> None:
        """SIGSTOP for everything on the node: it answers nobody, and does not notice."""
        _stop_all(node)

    def wake_node(self, node: Node) -> None:
        """SIGCONT for everything on the node. If Ray gave it up meanwhile, its raylet ends itself."""
        for process in [psutil.Process(node.root.pid), *node.processes()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    # --- the head ---

    def start_head(self) -> Node:
        """Starts the head, or starts it again after `kill_head`, and returns when its Jobs API answers.

        With `persistent_head` it knows its nodes, actors and jobs again, and the nodes find it. Without, they end by
        themselves (their machines stay, so kill and add nodes), and the head knows nothing.
        """
        assert self.head is None, "the head lives"
        for _ in range(START_TRIES):
            self.head = head = self._machine("head", HEAD_IP, self._head_storage())
            if self._head_came(head):
                return head
            log = head.log_text()[-4000:]
            self.kill_head()
        pytest.fail(f"waited in vain for the head:\n{log}")

    def _head_storage(self) -> dict[str, str]:
        if not self.persistent_head:
            return {}
        return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self.temp_dir / "gcs")}

    def _head_came(self, head: Node) -> bool:
        # With it Ray takes the nodes' raylets, which are on this same machine, for a head that still runs.
        (head.temp_dir / "ray_current_cluster").unlink(missing_ok=True)
        agent, client = free_ports(2)
        options = {
            "head": None,
            "port": self.gcs_port,
            "num-cpus": 0,
            "include-dashboard": "true",
            "dashboard-host": HEAD_IP,
            "dashboard-port": self.dashboard_port,
            "dashboard-agent-listen-port": agent,
            "ray-client-server-port": client,
            "disable-usage-stats": None,
            **self.head_options,
        }
        ray = head.start(_ray_start(HEAD_IP, head.temp_dir, options))
        return _came(self._jobs_api_answers, ray) and _came(partial(self._learn_id, head), ray)

    def kill_head(self) -> None:
        """Everything on the head at once: GCS, dashboard, Jobs API, Serve's controller and proxy, and jobs' drivers."""
        assert self.head is not None, "the head is killed already"
        _vanish(self.head)
        self.head = None

    # --- looking ---

    def processes(self, role: Role, node: Node | None = None) -> list[psutil.Process]:
        """The living processes of a role, of one node or of the whole cluster."""
        where = [node] if node else self._machines()
        return [process for each in where for process in each.processes() if _plays(process, role)]

    def node_of(self, pid: int) -> Node:
        """The node that a process runs on. Raises `LookupError` when it runs on none."""
        for node in self._machines():
            if any(process.pid == pid for process in node.processes()):
                return node
        raise LookupError(f"process {pid} is on no node of this cluster")

    def node_named(self, node_id: str) -> Node:
        """The node with Ray's id. Raises `LookupError` when it was killed."""
        for node in self._machines():
            if node.node_id == node_id:
                return node
        raise LookupError(f"node {node_id} is not one of this cluster")

    def node_states(self) -> dict[str, str]:
        """What Ray thinks of the nodes: ids in hex, and `ALIVE` or `DEAD`. Raises httpx2.HTTPError without a head."""
        return {each["node_id"]: each["state"] for each in self._list("nodes")}

    def market_types(self) -> dict[str, str | None]:
        """The label `ray.io/market-type` of the living nodes, by id."""
        return {
            each["node_id"]: (each["labels"] or {}).get("ray.io/market-type")
            for each in self._list("nodes")
            if each["state"] == "ALIVE"
        }

    def actor_pid(self, name: str) -> int | None:
        """The process of the living actor of that name, or None. Raises httpx2.HTTPError without a head."""
        query = {"filter_keys": "name", "filter_predicates": "=", "filter_values": name}
        for each in self._list("actors", **query):
            if each["state"] == "ALIVE" and each["pid"]:
                return each["pid"]
        return None

    def _machines(self) -> list[Node]:
        return [*([self.head] if self.head else []), *self.nodes]

    def _list(self, what: str, **query: str) -> list[dict[str, Any]]:
        """From Ray's state API."""
        answer = httpx2.get(f"{self.dashboard_url}/api/v0/{what}", params={"detail": "true", **query}, timeout=10)
        return answer.raise_for_status().json()["data"]["result"]["result"]

    def _learn_id(self, node: Node) -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            for each in self._list("nodes"):
                if each["node_ip"] == node.ip and each["state"] == "ALIVE":
                    node.node_id = each["node_id"]
                    return True
        return False

    def _jobs_api_answers(self) -> bool:
        # Submitting needs the agent as well, which this asks and which is up after the dashboard.
        with contextlib.suppress(httpx2.HTTPError):
            return httpx2.get(f"{self.dashboard_url}/api/jobs/", timeout=5).is_success
        return False

    def _machine(self, name: str, ip: str, env: Mapping[str, str]) -> Node:
        temp_dir = self.temp_dir / name
        temp_dir.mkdir(exist_ok=True)
        root = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.machine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**self.env, **env},
            cwd=ROOT,
            start_new_session=True,
        )
        inherited = {key: value for key, value in self.env.items() if key != "RAY_ADDRESS"}
        return Node(name, ip, {**inherited, **env}, temp_dir, root)

    def close(self) -> None:
        """Kills all that is left."""
        for node in self._machines():
            _vanish(node)
        shutil.rmtree(self.temp_dir, ignore_errors=True)


@contextlib.contextmanager
def ray_nodes(
    *,
    spots: int = 2,
    num_cpus: int = 4,
    persistent_head: bool = False,
    env: Mapping[str, str] | None = None,
    head_options: Mapping[str, object] | None = None,
) -> Iterator[RayNodes]:
    """A cluster with a head and `spots` nodes, gone at the end with everything on it.

    `env` is the whole cluster's. With `persistent_head` the GCS keeps its tables on disk and a restarted head goes on.
    """
    # A Unix socket's path has at most 107 bytes, and Ray's lie deep: pytest's own folders are too long.
    temp_dir = Path(tempfile.mkdtemp(prefix="rk-", dir="/tmp"))
    gcs, dashboard = free_ports(2)
    address = {"RAY_ADDRESS": f"{HEAD_IP}:{gcs}"}
    # Runs in several buckets are compared, so what is measured in each must not choose the engine.
    engine = {"REKINDLE_TRUNK_ENGINE": "litert"}
    environment = {**ray_environment(), **engine, **(env or {}), **address}
    cluster = RayNodes(environment, temp_dir, gcs, dashboard, persistent_head, head_options=head_options or {})
    try:
        cluster.start_head()
        for _ in range(spots):
            cluster.add_node(num_cpus=num_cpus)
        yield cluster
    finally:
        cluster.close()


def _ray_start(ip: str, temp_dir: Path, options: Mapping[str, object]) -> list[str]:
    return [str(Path(sys.executable).with_name("ray")), "start", "--block", *node_flags(ip, temp_dir, options)]


def node_flags(ip: str, temp_dir: Path, options: Mapping[str, object]) -> list[str]:
    """Flags of `ray start` for one of several nodes on this machine, and the options as flags."""
    shared = {
        "node-ip-address": ip,
        "temp-dir": temp_dir,
        "object-store-memory": _OBJECT_STORE_BYTES,
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    return [f"--{name}" if value is None else f"--{name}={value}" for name, value in {**shared, **options}.items()]


_HELD = (psutil.STATUS_STOPPED, psutil.STATUS_DISK_SLEEP)
"""What a process that was told to stop runs nothing in. After `vfork` a parent sleeps in the kernel until its child has
begun its program, which that, stopped as well, does not: the parent never gets as far as stopping."""


def _stop_all(node: Node) -> None:
    """Until none is running: a process may start another while this goes through them."""
    psutil.Process(node.root.pid).suspend()
    told: set[psutil.Process] = set()
    while running := [each for each in node.processes() if each not in told or _status(each) not in _HELD]:
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        told.update(running)


def _vanish(node: Node) -> None:
    if node.alive:
        _stop_all(node)
        doomed = node.processes()
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.root.kill()
        psutil.wait_procs(doomed, timeout=20)
    node.root.wait(timeout=20)
    for stream in (node.root.stdin, node.root.stdout):
        if stream:
            stream.close()


def _status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_STOPPED


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _plays(process: psutil.Process, role: Role) -> bool:
    try:
        return re.match(role.value, " ".join(process.cmdline()) + " ") is not None
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def _came(condition: Callable[[], bool], ray: psutil.Process) -> bool:
    """Whether it came true in time, and before Ray's own start gave up."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline or not _lives(ray):
            return False
        time.sleep(0.2)
    return True
