"""When and where work was done: spans of time, so that a stage can tell its work from its waiting."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from services.contracts.jobs import Machine, MachineWork

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Span:
    """From, until, in Unix seconds."""

    began_s: float
    ended_s: float
    machine: Machine | None = None
    """Null for a driver's own work."""


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """What a task gives back, and when it was at work."""

    result: Result
    span: Span


class Watch:
    """Keeps spans, of the machine that it is made on; its owner reads them when all are in."""

    def __init__(self, machine: Machine | None = None) -> None:
        self.spans: list[Span] = []
        self._machine = machine

    @contextmanager
    def working(self) -> Iterator[None]:
        """What happens inside is work."""
        began_s = time.time()
        try:
            yield
        finally:
            self.spans.append(Span(began_s, time.time(), self._machine))


def covered_s(spans: Iterable[Span], within: Span) -> float:
    """Seconds of `within` in which at least one of the spans was running."""
    covered, end_s = 0.0, within.began_s
    for span in sorted(spans, key=lambda span: span.began_s):
        began_s, ended_s = max(span.began_s, end_s), min(span.ended_s, within.ended_s)
        if ended_s > began_s:
            covered += ended_s - began_s
            end_s = ended_s
    return covered


def by_machine(spans: Iterable[Span]) -> list[MachineWork]:
    """Each machine's share of the work, in the order in which they began."""
    of_each: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        if span.machine is not None:
            of_each[span.machine.node_id].append(span)
    works = [
        MachineWork(
            machine=own[0].machine,
            began_at=datetime.fromtimestamp(min(span.began_s for span in own), UTC),
            ended_at=datetime.fromtimestamp(max(span.ended_s for span in own), UTC),
            busy_s=round(sum(span.ended_s - span.began_s for span in own), 3),
        )
        for own in of_each.values()
        if own[0].machine is not None
    ]
    return sorted(works, key=lambda work: (work.began_at, work.machine.node_id))
