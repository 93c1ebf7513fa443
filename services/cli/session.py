"""What every command works with: the client, and printing for people or for programs."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.settings import CliSettings
from services.client import Rekindle
from services.client.client import DEFAULT_PATIENCE_S

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """Options before the command's name; None leaves it to the environment."""

    url: str | None = None
    api_key: str | None = None


def client_of(context: typer.Context, patience_s: float = DEFAULT_PATIENCE_S) -> Rekindle:
    """A client of the server that the options or the environment name, closed when the command ends."""
    options = context.find_object(GlobalOptions) or GlobalOptions()
    settings = CliSettings()
    key = options.api_key or (settings.api_key.get_secret_value() if settings.api_key is not None else None)
    client = Rekindle(options.url or settings.url, key, patience_s=patience_s)
    context.call_on_close(client.close)
    return client


def stdout() -> Console:
    """For results. Made when asked for, so that it follows a redirected standard output."""
    return Console(highlight=False)


def stderr() -> Console:
    """For what accompanies a result: progress, hints, errors."""
    return Console(stderr=True, highlight=False)


def print_json(value: BaseModel | Iterable[BaseModel]) -> None:
    """One JSON document on standard output."""
    if isinstance(value, BaseModel):
        typer.echo(value.model_dump_json(indent=2))
    else:
        typer.echo(json.dumps([item.model_dump(mode="json") for item in value], indent=2, ensure_ascii=False))


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without a frame."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # text, so that a label in brackets is no markup
    return table


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """A table, or a sentence where there is nothing to show."""
    table = make_table(columns, rows)
    stdout().print(table if table.row_count else empty)


def shown_share(value: float | None) -> str:
    """A share from 0 to 1 as a percentage; `-` where it is not known."""
    return "-" if value is None else f"{value:.1%}"
