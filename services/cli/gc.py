"""`rekindle gc`: works on the bucket and the database themselves, so it runs where the server runs."""

import asyncio
from typing import Annotated

import typer

from services.cli.server import BucketUri, migrated_database, server_settings
from services.cli.session import AsJson, print_json, print_table, stderr
from services.contracts.base import utc_now
from services.runtime.objects import open_store
from services.runtime.settings import Settings
from services.training.garbage.operations import Collected, collect, read_known, rules_of

IN_DOUBT = 1
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024

app = typer.Typer(add_completion=False)


@app.command()
def run(
    bucket: BucketUri = None,
    database: Annotated[
        str | None,
        typer.Option(help="The gateways' database: what it refers to is kept. (REKINDLE_DATABASE_URL)", metavar="URL"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Removes the bucket's garbage now. The leading gateway does the same by itself every REKINDLE_GARBAGE_INTERVAL_S.

    It may run beside gateways and jobs, and be stopped at any time. Exit status 1 when something in the bucket is
    damaged; what it may refer to is kept.
    """
    settings = server_settings(bucket, database)
    collected = asyncio.run(_collect(settings, dry_run=dry_run))
    if as_json:
        print_json(collected)
    else:
        _show(collected, dry_run=dry_run)
    for each in collected.in_doubt:
        stderr().print(f"in doubt: {each.key}: {each.reason}", markup=False, soft_wrap=True)
    if collected.in_doubt:
        raise typer.Exit(IN_DOUBT)


async def _collect(settings: Settings, *, dry_run: bool) -> Collected:
    async with migrated_database(settings) as database:
        known = await read_known(database)
    return await collect(open_store(settings.bucket_uri), known, rules_of(settings, utc_now()), dry_run=dry_run)


def _show(collected: Collected, *, dry_run: bool) -> None:
    rows = ((each.kind, each.where, str(each.objects), shown_size(each.size_bytes)) for each in collected.removed)
    print_table(("Kind", "Of", "Objects", "Size"), rows, empty="no garbage")
    what = "would be removed" if dry_run else "removed"
    typer.echo(f"{collected.objects} object(s), {shown_size(collected.size_bytes)}, {what}")


def shown_size(size_bytes: int) -> str:
    """With the largest unit that it has one of."""
    value = float(size_bytes)
    for unit in _UNITS[:-1]:
        if value < _STEP:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= _STEP
    return f"{value:.1f} {_UNITS[-1]}"
