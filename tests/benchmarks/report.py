"""The report of a run: its numbers as JSON, and as Markdown tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """What a number should reach; a number that misses it is marked, and fails nothing."""

    at_least: float | None = None
    at_most: float | None = None

    def met_by(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        bounds = [(">=", self.at_least), ("<=", self.at_most)]
        return " and ".join(f"{sign} {_number(bound)}" for sign, bound in bounds if bound is not None)


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a pair stands for."""

    name: str
    value: float | None
    """Null where it could not be measured."""
    meaning: str
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Measurements in rows, for those who want to see behind the figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one pair found out."""

    figures: Sequence[Figure]
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    """How it was measured, where that is not plain."""
    measurements: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """All of them, for the JSON."""


def as_json(setting: Mapping[str, Any], findings: Mapping[str, Finding]) -> dict[str, Any]:
    """The report: the setting, every figure by its name, what missed its target, and each pair's measurements."""
    figures = [figure for finding in findings.values() for figure in finding.figures]
    return {
        **setting,
        **{figure.name: figure.value for figure in figures},
        "missed": [figure.name for figure in figures if is_missed(figure)],
        "notes": [note for finding in findings.values() for note in finding.notes],
        "measurements": {name: dict(finding.measurements) for name, finding in findings.items()},
    }


def as_markdown(setting: Mapping[str, Any], findings: Mapping[str, Finding]) -> str:
    """The same for people."""
    figures = [figure for finding in findings.values() for figure in finding.figures]
    summary = [(figure.name, figure.value, _target(figure), figure.meaning) for figure in figures]
    parts = [_table(("figure", "measured", "target", "meaning"), summary)]
    for finding in findings.values():
        parts += [f"{table.title}:\n\n{_table(table.columns, table.rows)}" for table in finding.tables]
    notes = [f"{name.replace('_', ' ')}: {value}" for name, value in setting.items()]
    notes += [note for finding in findings.values() for note in finding.notes]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)])


def is_missed(figure: Figure) -> bool:
    """Whether it has a target and was measured on the wrong side of it."""
    return figure.target is not None and figure.value is not None and not figure.target.met_by(figure.value)


def _target(figure: Figure) -> str:
    return "" if figure.target is None else f"{figure.target}{' (missed)' if is_missed(figure) else ''}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(cell: str | float | None) -> str:
    return "-" if cell is None else cell if isinstance(cell, str) else _number(cell)


def _number(value: float) -> str:
    """Three digits that matter; whole numbers from 100 on whole."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
