"""When work was done: spans of time, so that a stage can tell its work from its waiting."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Span:
    """From, until, in Unix seconds."""

    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """What a task gives back, and when it was at work."""

    result: Result
    span: Span


class Watch:
    """Keeps spans; its owner reads them when all are in."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @contextmanager
    def working(self) -> Iterator[None]:
        """What happens inside is work."""
        began_s = time.time()
        try:
            yield
        finally:
            self.spans.append(Span(began_s, time.time()))


def covered_s(spans: Iterable[Span], within: Span) -> float:
    """Seconds of `within` in which at least one of the spans was running."""
    covered, end_s = 0.0, within.began_s
    for span in sorted(spans, key=lambda span: span.began_s):
        began_s, ended_s = max(span.began_s, end_s), min(span.ended_s, within.ended_s)
        if ended_s > began_s:
            covered += ended_s - began_s
            end_s = ended_s
    return covered
