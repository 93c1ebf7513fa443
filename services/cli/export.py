"""`rekindle export`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from services.cli.session import client_of, stderr, stdout
from services.client import Rekindle
from services.contracts.errors import NotFound
from services.contracts.exports import ExportFormat, ExportStatus

app = typer.Typer(add_completion=False)
_MODEL = re.compile(r"([^@:]+)(?:@([^@:]+)|:([1-9][0-9]*))?")


@app.command()
def export(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="NAME[@ALIAS|:VERSION]", help="The model; without alias or version its newest one.")
    ],
    form: Annotated[ExportFormat, typer.Option("--format", "-f", help="Of the model in the archive.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The archive. (default: NAME-vVERSION-FORMAT.zip)")
    ] = None,
) -> None:
    """Writes a version as a zip archive for other programs: the model, its labels, and how to load it.

    The first time the cluster builds it. Ctrl-C ends the waiting, not the build.
    """
    client, console = client_of(context), stderr()
    name, version = find_version(client, model)
    file = output or Path(f"{name}-v{version}-{form}.zip")
    with console.status(f"{name} version {version} as {form}") as shown:

        def tell(status: ExportStatus) -> None:
            doing = "is being built" if status.state == "running" else "waits for the cluster"
            again = f" (build {status.build})" if status.build > 1 else ""
            shown.update(f"{name} version {version} as {form} {doing}{again}")

        client.models.export(name, version, form, file, on_progress=tell)
    stdout().print(f"written to {file}", markup=False)


def find_version(client: Rekindle, model: str) -> tuple[str, int]:
    """The model's name and the version that `NAME`, `NAME@ALIAS` or `NAME:VERSION` means.

    Raises `NotFound`, and `ValueError` where it is none of these.
    """
    match = _MODEL.fullmatch(model)
    if match is None:
        raise ValueError(f"{model!r} names no model: write NAME, NAME@ALIAS or NAME:VERSION")
    name, alias, version = match.groups()
    if version is not None:
        return name, int(version)
    found = client.models.get(name)
    if alias is None:
        return name, found.latest_version
    versions = {each.alias: each.version for each in found.aliases}
    if alias not in versions:
        shown = ", ".join(sorted(versions)) or "none"
        raise NotFound(f"model {name!r} has no alias {alias!r}: its aliases are {shown}")
    return name, versions[alias]
