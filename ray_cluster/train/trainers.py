"""Finds trainers in the cluster, and starts them. Any driver or actor of the cluster may.

Nobody keeps a list: a trainer is a named actor, and what it is at it tells itself.
"""

import os
import secrets
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_cluster.train.machines import Place
from ray_cluster.train.trainer import Trainer, TrainerView

NAMESPACE = "rekindle"
CPUS = 0.01
"""A trainer mostly waits; it must fit beside the tasks on a full node, and not on a head without CPUs."""
HELPER_CPUS = 1.0
"""A helper computes from its first moment on."""
CALLS_AT_A_TIME = 16
PROMPT_S = 0.3
"""How long a trainer may take to say what it is at. One that is just loading, or frozen, does not count, and is not
worth waiting for."""
PATIENT_S = 2.0
"""The same where it matters that none is overlooked."""
START_S = 30.0
"""One that does not answer by then is not worth waiting for."""

_PREFIX = f"trainer-{version('rekindle')}-"
"""Trainers of another release are left alone; they leave by themselves."""


@dataclass(frozen=True, slots=True)
class KnownTrainer:
    """A trainer that answered."""

    name: str
    actor: Any
    view: TrainerView

    @property
    def idle(self) -> bool:
        return not self.view.running and self.view.assists is None

    @property
    def free(self) -> bool:
        """Idle, and nobody counts on it."""
        return self.idle and self.view.stands_by is None

    def suits(self, place: Place) -> bool:
        """Whether it runs where a job's work may run."""
        return place.suits(self.view.node_labels)


def idle_s() -> float:
    """REKINDLE_TRAINER_IDLE_S of the cluster's environment: seconds that a standby waits for work. Default 120."""
    return float(os.environ.get("REKINDLE_TRAINER_IDLE_S", "120"))


def start(place: Place, cpus: float = CPUS, node_id: str | None = None, *, tensorflow: bool = False) -> str:
    """Starts a trainer at a place and returns its name at once; it answers when its process is there.

    With `node_id`, of a node that suits the place, there or nowhere. With `tensorflow`, it goes on to load that.
    """
    name = f"{_PREFIX}{_kind(place)}-{secrets.token_hex(6)}"
    options: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "scheduling_strategy": "SPREAD" if node_id is None else NodeAffinitySchedulingStrategy(node_id, soft=False),
        "num_cpus": cpus,
        "label_selector": place.selector() if node_id is None else {},
        "max_concurrency": CALLS_AT_A_TIME,
    }
    actor: Any = ray.remote(Trainer).options(**options).remote(idle_s())
    if tensorflow:
        actor.load_tensorflow.remote()
    return name


def _kind(place: Place) -> str:
    """The part of a trainer's name that says for which place it was started: it may have no node that could tell."""
    return "+".join(value for values in place.accepted().values() for value in values) or "any"


def names_of_all() -> list[str]:
    """The names of all trainers, those included that are starting or waiting for a node."""
    listed: list[Any] = list_named_actors(all_namespaces=True)  # its annotation is of the other form
    return [each["name"] for each in listed if each["namespace"] == NAMESPACE and each["name"].startswith(_PREFIX)]


def names_starting(place: Place, answered: Collection[KnownTrainer]) -> list[str]:
    """The names of those that were started for exactly this place and are not among `answered`."""
    known = {trainer.name for trainer in answered}
    kind = f"{_PREFIX}{_kind(place)}"
    return [name for name in names_of_all() if name.rpartition("-")[0] == kind and name not in known]


def find(timeout_s: float = PROMPT_S) -> list[KnownTrainer]:
    """All trainers that answer within `timeout_s`."""
    asked: dict[ray.ObjectRef[TrainerView], tuple[str, Any]] = {}
    for name in names_of_all():
        try:
            actor = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:  # it has left meanwhile
            continue
        asked[actor.look.remote()] = (name, actor)
    if not asked:
        return []
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
    found: list[KnownTrainer] = []
    for ref in answered:
        try:
            found.append(KnownTrainer(*asked[ref], _view(ref)))
        except RayError:
            continue  # it is lost
    return sorted(found, key=lambda trainer: trainer.name)


def await_one(name: str, timeout_s: float) -> KnownTrainer | None:
    """The trainer, once it answers; None when it has not within `timeout_s`. Raises `RayActorError` when it died."""
    deadline = time.monotonic() + timeout_s
    try:
        actor = ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as error:
        raise RayActorError(error_msg=f"trainer {name} is gone") from error
    ref = actor.look.remote()
    answered, _ = ray.wait([ref], timeout=max(0.0, deadline - time.monotonic()))
    return KnownTrainer(name, actor, _view(ref)) if answered else None


def _view(ref: "ray.ObjectRef[TrainerView]") -> TrainerView:
    view = ray.get(ref)
    assert isinstance(view, TrainerView)  # noqa: S101
    return view


def stand_by(
    place: Place, work: str, job_json: str, avoiding: Collection[str] = (), preferring: Collection[str] = ()
) -> None:
    """Has an idle trainer at the place, on a node that is not one of `avoiding`, get ready for the job (`FitJob` JSON)
    whose work that is, unless it stands by for another; starts one where there is none and none is starting.

    It is started on that one of the nodes `preferring` that has the fewest trainers, where there are any. Returns at
    once: call it again and again.
    """
    answered = find()
    usable = [trainer for trainer in answered if trainer.suits(place) and trainer.view.node_id not in avoiding]
    standby = choose_standby(usable, work)
    if standby is not None:
        standby.actor.get_ready.remote(job_json)
    elif not names_starting(place, answered):
        there = Counter(trainer.view.node_id for trainer in answered)
        start(place, node_id=min(preferring, key=lambda node_id: (there[node_id], node_id), default=None))


def choose_standby(usable: Collection[KnownTrainer], work: str) -> KnownTrainer | None:
    """The one that is ready for the work, or gets ready, or else one that nobody counts on."""
    ours = [trainer for trainer in usable if trainer.idle and work in (trainer.view.ready_for, trainer.view.stands_by)]
    ours.sort(key=lambda trainer: trainer.view.ready_for != work)
    return next(iter([*ours, *(trainer for trainer in usable if trainer.free)]), None)


def prepare(place: Place, nodes: Collection[str], *, tensorflow: bool) -> None:
    """Starts trainers until one is idle or starting on two of these nodes, which suit the place, or on the only one.

    The second is the standby of whichever gets the fit: to be of use it must be there before it is needed. With
    `tensorflow`, all of them get that. Returns at once.
    """
    answered = find()
    starting = names_starting(place, answered)
    for node_id in nodes_without(answered, len(starting), nodes):
        start(place, node_id=node_id, tensorflow=tensorflow)
    if not tensorflow:
        return
    actors = [trainer.actor for trainer in answered if trainer.idle and trainer.view.node_id in nodes]
    for name in starting:
        with suppress(ValueError):  # it is gone
            actors.append(ray.get_actor(name, namespace=NAMESPACE))
    for actor in actors:
        actor.load_tensorflow.remote()


def keep_one(node_id: str) -> None:
    """Has an idle trainer on a node, which every place suits, wait on; starts one where there is none.

    Returns when it answers, or is not worth waiting for. Raises `RayError` where it dies as it starts.
    """
    answered = find(PATIENT_S)
    free = [each for each in answered if each.free and each.view.node_id == node_id]
    if free:
        free[0].actor.stay.remote()
        return
    starting = names_starting(Place(), answered)
    await_one(min(starting) if starting else start(Place(), node_id=node_id), START_S)


def nodes_without(answered: Collection[KnownTrainer], starting: int, nodes: Collection[str]) -> list[str]:
    """Where trainers are to be started, so that two of the nodes have one that is idle: those with the fewest first.

    `starting` more may come on any of them.
    """
    there = Counter(trainer.view.node_id for trainer in answered)
    idle = {trainer.view.node_id for trainer in answered if trainer.free}.intersection(nodes)
    others = sorted(set(nodes) - idle, key=lambda node_id: (there[node_id], node_id))
    return others[: max(0, min(2, len(nodes)) - len(idle) - starting)]


def dismiss(name: str) -> None:
    """Ends a trainer. One that is gone is no error."""
    try:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))
    except ValueError:
        return
