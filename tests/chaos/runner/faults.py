"""The faults: one class for each target, which finds a victim and strikes it.

A strike returns when what something restarts in real life runs again: a gateway, the head, a server after its outage;
and when a spot node that went has a successor.
"""

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import httpx2
import psutil

from services.contracts.base import utc_now
from services.contracts.ids import JobId
from tests.chaos.runner.deployment import Deployment, Gateway, kill, wait_for
from tests.chaos.runner.schedule import Manner, Strike, Target
from tests.chaos.runner.watch import WatchedJob
from tests.servers.ray_nodes import Node, Role

RESTART_S = 1.0
"""How long a killed server stays away before whatever looks after it starts it again."""
BUSY_S = 0.3
BUSY_PERCENT = 25.0
"""Of a core: a trainer that uses more is in a fit, and otherwise stands by."""
MOVED_ON_S = 120.0
"""How long a frozen node's jobs may take to move on before it is woken all the same."""
ZOMBIE_S = 10.0
"""How long a zombie may do what it likes before its machine goes."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a fault may look at."""

    deployment: Deployment
    jobs: Sequence[WatchedJob]
    """Those that have not ended."""
    preferred: WatchedJob | None
    """The job whose stage made it time to strike."""
    source: random.Random
    outage_s: float
    notice_s: float


@dataclass(frozen=True, slots=True)
class Struck:
    """What was struck, and when."""

    victim: str
    began_at: datetime
    ended_at: datetime
    """Equal to `began_at` for a kill."""
    told_at: datetime | None = None
    """When Ray told that a node was lost, where that was waited for."""


class Fault(Protocol):
    """One planned fault. What `find` returned is what `strike` takes."""

    def find(self, scene: Scene) -> Any | None:
        """A victim, or None where there is none at the moment."""
        ...

    def strike(self, victim: Any, scene: Scene) -> Struck:
        """Strikes, and returns when what comes back by itself is back."""
        ...


def fault_for(strike: Strike) -> Fault:
    """The fault that a strike plans."""
    match strike.target:
        case Target.TRAIN_WORKER:
            return ProcessFault(Role.TRAIN_WORKER, strike)
        case Target.TRAIN_CONTROLLER:
            return ProcessFault(Role.TRAIN_CONTROLLER, strike)
        case Target.TRAINER:
            return ProcessFault(Role.TRAINER, strike)
        case Target.JOB_DRIVER:
            return DriverFault(strike)
        case Target.NODE:
            return NodeFault()
        case Target.ZOMBIE_NODE:
            return ZombieFault()
        case Target.SPOT_NOTICE:
            return SpotFault()
        case Target.RAY_HEAD:
            return HeadFault()
        case Target.GATEWAY | Target.LEASE_HOLDER:
            return GatewayFault(strike, leader=strike.target is Target.LEASE_HOLDER)
        case Target.S3:
            return S3Fault()
        case Target.POSTGRESQL:
            return PostgresFault()


@dataclass(frozen=True, slots=True)
class ProcessFault:
    """One process of the cluster; of trainers, one that is in a fit."""

    role: Role
    plan: Strike

    def find(self, scene: Scene) -> psutil.Process | None:
        found = scene.deployment.ray.processes(self.role)
        return _pick(_busy(found) if self.role is Role.TRAINER else found, scene)

    def strike(self, victim: psutil.Process, scene: Scene) -> Struck:
        return _strike_process(victim, self.plan)


@dataclass(frozen=True, slots=True)
class DriverFault:
    """The driver of the job whose stage it is, or of another."""

    plan: Strike

    def find(self, scene: Scene) -> psutil.Process | None:
        found = scene.deployment.ray.processes(Role.JOB_DRIVER)
        of_job = [each for each in found if scene.preferred and _is_of(each, scene.preferred.job_id)]
        return _pick(of_job or found, scene)

    def strike(self, victim: psutil.Process, scene: Scene) -> Struck:
        return _strike_process(victim, self.plan)


@dataclass(frozen=True, slots=True)
class NodeFault:
    """A spot node, without notice; one with a fit on it where there is one."""

    def find(self, scene: Scene) -> Node | None:
        return _node_to_strike(scene)

    def strike(self, victim: Node, scene: Scene) -> Struck:
        began_at = utc_now()
        scene.deployment.ray.kill_node(victim)
        return Struck(victim.name, began_at, began_at)


@dataclass(frozen=True, slots=True)
class ZombieFault:
    """A spot node that stands still until the cluster has given it up and its jobs train elsewhere, and then wakes."""

    def find(self, scene: Scene) -> Node | None:
        return _node_to_strike(scene)

    def strike(self, victim: Node, scene: Scene) -> Struck:
        ray, fitting = scene.deployment.ray, [job for job in scene.jobs if job.trains]
        began_at = utc_now()
        ray.freeze_node(victim)
        frozen_at = utc_now()

        def given_up() -> bool:
            with contextlib.suppress(httpx2.HTTPError):
                return ray.node_states().get(victim.node_id) != "ALIVE"
            return False

        def moved_on() -> bool:
            with contextlib.suppress(httpx2.HTTPError):
                return all(not job.trains or job.epoch_after(frozen_at) for job in fitting)
            return False

        wait_for(given_up, f"{victim.name} to be given up", victim.log_text, MOVED_ON_S)
        told_at = utc_now()
        wait_for(moved_on, f"the jobs of {victim.name} to move on", victim.log_text, MOVED_ON_S)
        ray.wake_node(victim)
        time.sleep(ZOMBIE_S)
        ray.kill_node(victim)
        return Struck(victim.name, began_at, began_at, told_at)


@dataclass(frozen=True, slots=True)
class SpotFault:
    """A spot node that gets notice, and is killed at the deadline."""

    def find(self, scene: Scene) -> Node | None:
        return _node_to_strike(scene)

    def strike(self, victim: Node, scene: Scene) -> Struck:
        began_at, began_s = utc_now(), time.monotonic()
        scene.deployment.give_notice(victim, scene.notice_s)
        time.sleep(max(0.0, scene.notice_s - (time.monotonic() - began_s)))
        scene.deployment.ray.kill_node(victim)
        return Struck(victim.name, began_at, began_at)


@dataclass(frozen=True, slots=True)
class HeadFault:
    """Everything on the head: GCS, dashboard, Jobs API, and the drivers there."""

    def find(self, scene: Scene) -> Node | None:
        return scene.deployment.ray.head

    def strike(self, victim: Node, scene: Scene) -> Struck:
        began_at = utc_now()
        scene.deployment.ray.kill_head()
        time.sleep(RESTART_S)
        scene.deployment.ray.start_head()
        return Struck("head", began_at, began_at)


@dataclass(frozen=True, slots=True)
class GatewayFault:
    """The gateway that leads, or one that does not."""

    plan: Strike
    leader: bool

    def find(self, scene: Scene) -> Gateway | None:
        leading = scene.deployment.leader()
        if leading is None:
            return None
        others = [each for each in scene.deployment.gateways if each is not leading]
        return leading if self.leader else scene.source.choice(others)

    def strike(self, victim: Gateway, scene: Scene) -> Struck:
        assert victim.process is not None
        if self.plan.manner is Manner.FREEZE:
            struck = _strike_process(victim.process, self.plan)
            return Struck(victim.name, struck.began_at, struck.ended_at)
        began_at = utc_now()
        victim.kill()
        time.sleep(RESTART_S)
        victim.start()
        return Struck(victim.name, began_at, began_at)


@dataclass(frozen=True, slots=True)
class S3Fault:
    """The bucket cannot be reached for a while."""

    def find(self, scene: Scene) -> str | None:
        return "s3"

    def strike(self, victim: str, scene: Scene) -> Struck:
        return _outage(victim, scene.deployment.s3.shut, scene.deployment.s3.open, scene.outage_s)


@dataclass(frozen=True, slots=True)
class PostgresFault:
    """The database is restarted: sessions end, and it is away for a moment."""

    def find(self, scene: Scene) -> str | None:
        return "postgresql"

    def strike(self, victim: str, scene: Scene) -> Struck:
        return _outage(victim, scene.deployment.postgres.stop, scene.deployment.postgres.start, RESTART_S)


def replace_ended_nodes(deployment: Deployment) -> None:
    """Replaces machines whose raylet has ended, as an autoscaler would: after its head was lost for long, one may."""
    for node in list(deployment.ray.nodes):
        if not deployment.ray.processes(Role.RAYLET, node):
            deployment.ray.kill_node(node)
            deployment.add_node()


def replace_killed_nodes(deployment: Deployment) -> None:
    """Brings as many nodes as there were: minutes after the kill in real life, and never on the others' cores."""
    while len(deployment.ray.nodes) < deployment.node_count:
        deployment.add_node()


def _outage(victim: str, stop: Callable[[], None], start: Callable[[], None], outage_s: float) -> Struck:
    began_at = utc_now()
    stop()
    time.sleep(outage_s)
    start()
    return Struck(victim, began_at, utc_now())


def _strike_process(victim: psutil.Process, plan: Strike) -> Struck:
    name = f"process {victim.pid}"
    began_at = utc_now()
    if plan.manner is Manner.KILL:
        kill(victim)
        return Struck(name, began_at, began_at)
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.suspend()
        try:
            time.sleep(plan.freeze_s)
        finally:
            victim.resume()
    return Struck(name, began_at, utc_now())


def _node_to_strike(scene: Scene) -> Node | None:
    """A node on which a trainer is in a fit; any where no job is in its fit. Nodes are few: one always stays."""
    ray = scene.deployment.ray
    nodes = [node for node in ray.nodes if node.alive and ray.processes(Role.RAYLET, node)]
    if len(nodes) < 2:
        return None
    busy = _busy(ray.processes(Role.TRAINER))
    busy_nodes = [node for node in nodes if any(each.pid in {one.pid for one in node.processes()} for each in busy)]
    if not busy_nodes and any(job.trains for job in scene.jobs):
        return None
    return scene.source.choice(busy_nodes or nodes)


def _busy(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that compute."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.cpu_percent()
    time.sleep(BUSY_S)
    busy: list[psutil.Process] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cpu_percent() >= BUSY_PERCENT:
                busy.append(process)
    return busy


def _pick(processes: Sequence[psutil.Process], scene: Scene) -> psutil.Process | None:
    return scene.source.choice(sorted(processes, key=lambda each: each.pid)) if processes else None


def _is_of(process: psutil.Process, job_id: JobId) -> bool:
    try:
        return job_id in " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
