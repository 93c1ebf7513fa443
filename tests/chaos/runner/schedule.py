"""Which fault comes when: a pure function of the seed, so that a run can be repeated in its choices.

Moments are relative to a job's stages, since how long a stage takes depends on the machine: "1.3 s after some job
began to fit", not "at second 40".
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from services.contracts.jobs import Stage


class Target(StrEnum):
    """What is struck. Each value is the name used in TARGETS and in the report."""

    TRAIN_WORKER = "train_worker"
    """Ray Train's worker of a job: it supervises the fit."""
    TRAINER = "trainer"
    """The process that computes a job's fit."""
    TRAIN_CONTROLLER = "train_controller"
    JOB_DRIVER = "job_driver"
    NODE = "node"
    """Everything on a spot node, without notice."""
    ZOMBIE_NODE = "zombie_node"
    """Everything on a spot node stands still until its job has moved on, and then goes on."""
    SPOT_NOTICE = "spot_notice"
    """The node is told two minutes or less ahead, and killed at the deadline."""
    RAY_HEAD = "ray_head"
    GATEWAY = "gateway"
    """One that does not hold the lease."""
    LEASE_HOLDER = "lease_holder"
    """The gateway whose reconciler leads."""
    S3 = "s3"
    """The S3 server refuses connections for a while."""
    POSTGRESQL = "postgresql"


class Manner(StrEnum):
    """How it is struck."""

    KILL = "kill"
    """SIGKILL; a server that something restarts in real life is started again."""
    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT later."""
    OUTAGE = "outage"
    NOTICE = "notice"


MANNERS: dict[Target, tuple[Manner, ...]] = {
    Target.TRAIN_WORKER: (Manner.KILL, Manner.KILL, Manner.FREEZE),
    Target.TRAINER: (Manner.KILL, Manner.KILL, Manner.FREEZE),
    Target.TRAIN_CONTROLLER: (Manner.KILL, Manner.KILL, Manner.FREEZE),
    Target.JOB_DRIVER: (Manner.KILL, Manner.KILL, Manner.FREEZE),
    Target.NODE: (Manner.KILL,),
    Target.ZOMBIE_NODE: (Manner.FREEZE,),
    Target.SPOT_NOTICE: (Manner.NOTICE,),
    Target.RAY_HEAD: (Manner.KILL,),
    Target.GATEWAY: (Manner.KILL, Manner.KILL, Manner.FREEZE),
    Target.LEASE_HOLDER: (Manner.KILL, Manner.KILL, Manner.FREEZE),
    Target.S3: (Manner.OUTAGE,),
    Target.POSTGRESQL: (Manner.OUTAGE,),
}
"""A manner that stands twice is drawn twice as often."""

ONLY_WHILE_TRAINING = frozenset({Target.TRAIN_WORKER, Target.TRAINER, Target.TRAIN_CONTROLLER})
"""They exist in no other stage."""

TRAINING: tuple[Stage, ...] = (Stage.FIT, Stage.FINE_TUNE, Stage.FINE_TUNE)
"""A stage that stands twice is drawn twice as often; it takes longer."""
STAGES: tuple[Stage, ...] = (*TRAINING * 2, Stage.PREFLIGHT, Stage.FEATURES, Stage.EVALUATE, Stage.PUBLISH)
"""The stages of the others, drawn evenly: training takes most of a job's time."""

MAX_DELAY_S = {Stage.FIT: 3.0, Stage.FINE_TUNE: 6.0}
"""How long after a stage's start its strike comes at the latest; the other stages are short."""
SHORT_STAGE_DELAY_S = 0.5
FREEZE_S = (2.0, 12.0)


@dataclass(frozen=True, slots=True)
class Strike:
    """One planned fault."""

    number: int
    """From 1."""
    target: Target
    manner: Manner
    stage: Stage
    """Some job is in this stage when it comes; any other stage, where none gets there in time."""
    delay_s: float
    """After that job entered the stage, or after the strike before where that was later."""
    freeze_s: float
    """How long what is frozen stands still."""


def plan(seed: int, kills: int, targets: Sequence[Target] = tuple(Target)) -> list[Strike]:
    """`kills` strikes. Every run of `len(targets)` strikes, from the first on, has each target once.

    Raises `ValueError` where there are no targets.
    """
    if not targets:
        raise ValueError("name at least one target")
    source = random.Random(f"chaos {seed}")
    strikes: list[Strike] = []
    while len(strikes) < kills:
        for target in source.sample(targets, len(targets)):
            strikes.append(_draw(source, len(strikes) + 1, target))
    return strikes[:kills]


def _draw(source: random.Random, number: int, target: Target) -> Strike:
    # Everything is drawn whether it is used or not, so that a change of one table leaves the other draws alone.
    manner, stage, training = source.choice(MANNERS[target]), source.choice(STAGES), source.choice(TRAINING)
    share, freeze_s = source.random(), source.uniform(*FREEZE_S)
    if target in ONLY_WHILE_TRAINING:
        stage = training
    delay_s = share * MAX_DELAY_S.get(stage, SHORT_STAGE_DELAY_S)
    return Strike(number, target, manner, stage, round(delay_s, 3), round(freeze_s, 3))
