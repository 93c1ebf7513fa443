"""The `rekindle` command. A subcommand's module is imported when it is called, so the others cost nothing."""

import importlib
import sys
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from services.cli.session import GlobalOptions, stderr
from services.client.errors import ClientError
from services.contracts.errors import RekindleError

INTERRUPTED = 130
COMMANDS = {
    "up": "services.cli.up",
    "train": "services.cli.train",
    "predict": "services.cli.predict",
    "explain": "services.cli.explain",
    "label": "services.cli.label",
    "datasets": "services.cli.datasets",
    "jobs": "services.cli.jobs",
    "receipt": "services.cli.receipt",
    "labels": "services.cli.labels",
    "export": "services.cli.export",
    "models": "services.cli.models",
    "keys": "services.cli.keys",
    "restore": "services.cli.restore",
    "gc": "services.cli.gc",
    "cost": "services.cli.cost",
    "doctor": "services.cli.doctor",
}
"""Modules with `app`, a Typer of one command or several."""


class LazyGroup(TyperGroup):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def rekindle(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="The server. (REKINDLE_URL; default http://127.0.0.1:8080)")] = None,
    api_key: Annotated[
        str | None, typer.Option(help="An API key, where the server needs one. (REKINDLE_API_KEY)")
    ] = None,
) -> None:
    """Trains image classifiers that survive any interruption, and serves them."""
    context.obj = GlobalOptions(url, api_key)


def main() -> None:
    """Exit status 0; 1 for a problem, which standard error names with what to do; 2 for wrong usage."""
    try:
        app(prog_name="rekindle")
    except (ClientError, RekindleError, ValidationError, OSError, ValueError) as error:
        stderr().print(f"[red]error:[/] {_escaped(error)}", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _escaped(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, part['loc'])) or 'value'}: {part['msg']}"
            for part in error.errors(include_url=False, include_input=False)
        ).replace("[", "\\[")
    return str(error).replace("[", "\\[")


if __name__ == "__main__":
    main()
