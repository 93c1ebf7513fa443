"""Notices that what an attempt asked for gets no node, says so, and lets on-demand nodes count when that is due.

Whoever waits for work to be placed calls `look` every few seconds, and `placed` when some of it was done. The decision
(`decide`) is pure; `CapacityWatch` asks Ray and reports.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ray_cluster.train.cluster_view import ClusterUnknown, runs_a_task
from ray_cluster.train.cluster_view import look as look_at_cluster
from ray_cluster.train.machines import ClusterView, Place, obstacle, suitable
from ray_cluster.train.reporter import Reporter
from services.contracts.base import utc_now
from services.contracts.jobs import CapacityWait, Stage
from services.contracts.resources import Resources

LOOK_S = 2.0
"""How long nothing must get done before the cluster is asked, and between two such questions."""
GRACE = timedelta(seconds=5)
"""Nodes take a moment to be known, and work a moment to be placed: a shorter wait is not told."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wait:
    """What is known of a wait; the default is none."""

    since: datetime | None = None
    told: CapacityWait | None = None
    """What was reported last; null when that was the end of a wait, or nothing."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a look leads to."""

    wait: Wait
    place: Place
    report: CapacityWait | None
    """To be told now; null where there is nothing new."""


def decide(
    wait: Wait, place: Place, resources: Resources, cpus: float, obstacles: Callable[[Place], str | None], now: datetime
) -> Decision:
    """After a look. `obstacles` says why a piece of work of `cpus` has no node at a place; None where it has one."""
    obstacle = obstacles(place)
    if obstacle is None:
        return ended(wait, place)
    since = wait.since or now
    may_fall_back = place.market == "spot" and resources.on_demand_after_s is not None
    falls_back_at = since + timedelta(seconds=resources.on_demand_after_s or 0) if may_fall_back else None
    if falls_back_at is not None and now >= falls_back_at and not place.on_demand_counts:
        place = replace(place, on_demand_counts=True)
        obstacle = obstacles(place)
    if now - since < GRACE or obstacle is None:
        # With the wider place it may have a node, which it gets once it is submitted anew: the next look tells.
        return Decision(replace(wait, since=since), place, None)
    told = CapacityWait(
        asked=f"{cpus:g} CPU on {place.words()}",
        since=since,
        message=obstacle,
        on_demand_at=None if place.on_demand_counts else falls_back_at,
    )
    return Decision(Wait(since, told), place, None if told == wait.told else told)


def ended(wait: Wait, place: Place) -> Decision:
    """After the wait, which is told where its beginning was."""
    return Decision(Wait(), place, None if wait.told is None else wait.told.model_copy(update={"over": True}))


class CapacityWatch:
    """Of one attempt, for one thread at a time."""

    def __init__(
        self,
        resources: Resources,
        reporter: Reporter,
        *,
        on_demand_counts: bool = False,
        look: Callable[[], ClusterView] = look_at_cluster,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._resources = resources
        self._reporter = reporter
        self._look = look
        self._clock = clock
        self._wait = Wait()
        self.place = Place.wanted(resources, on_demand_counts=on_demand_counts)
        """Where the work may run now. On-demand nodes that count once do so for the rest of the attempt."""

    def look(self, stage: Stage, cpus: float, runs: Callable[[], bool] = runs_a_task) -> bool:
        """Nothing got done for a while: asks Ray why. Whether `place` changed, so work must be submitted anew.

        `runs` says whether some of the work runs, which is asked only where suitable nodes are busy. Nothing follows
        from a head that does not answer.
        """
        try:
            view = self._look()
            running = False if obstacle(view, cpus, self.place) is None else self._is_running(view, cpus, runs)
        except ClusterUnknown as error:
            _log.warning("cannot tell whether the work waits for machines: %s", error)
            return False
        before = self.place
        decision = decide(
            self._wait,
            before,
            self._resources,
            cpus,
            lambda place: None if running else obstacle(view, cpus, place),
            self._clock(),
        )
        self._take(decision, stage)
        return self.place != before

    def placed(self, stage: Stage) -> None:
        """Some of the work got done, or began."""
        self._take(ended(self._wait, self.place), stage)

    def nodes(self, cpus: float) -> list[str]:
        """The ids of the nodes that could take work of `cpus`; none while the head does not say."""
        try:
            return [node.node_id for node in suitable(self._look(), cpus, self.place)]
        except ClusterUnknown:
            return []

    def has_gpus(self, cpus: float) -> bool:
        """Whether one of the nodes that could take work of `cpus` has a GPU to reserve; no while the head does not
        say."""
        try:
            return any(node.total_gpus > 0 for node in suitable(self._look(), cpus, self.place))
        except ClusterUnknown:
            return False

    def _is_running(self, view: ClusterView, cpus: float, runs: Callable[[], bool]) -> bool:
        return bool(suitable(view, cpus, self.place)) and runs()

    def _take(self, decision: Decision, stage: Stage) -> None:
        self._wait, self.place = decision.wait, decision.place
        if decision.report is not None:
            self._reporter.capacity(stage, decision.report)
