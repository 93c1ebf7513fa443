"""`rekindle restore`: works on the bucket and the database themselves, so it runs where the server runs."""

import asyncio
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from services.cli.server import BucketUri, migrated_database, server_settings
from services.cli.session import AsJson, print_json, print_table, stderr
from services.contracts.base import utc_now
from services.runtime.database.connections import parse_url
from services.runtime.objects import open_store
from services.runtime.settings import Settings
from services.training.restore.operations import Restored, restore

INCOMPLETE = 1

app = typer.Typer(add_completion=False)


@app.command()
def run(
    bucket: BucketUri = None,
    database: Annotated[
        str | None,
        typer.Option(help="The database to rebuild, empty or not. (REKINDLE_DATABASE_URL)", metavar="URL"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only read the bucket; touch no database.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before writing.")] = False,
    beside_gateways: Annotated[
        bool, typer.Option("--beside-gateways", help="Write although a gateway works on the database.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rebuilds a lost database from the bucket: datasets, jobs with their history, models, versions and aliases.

    Unfinished jobs go on as soon as a gateway runs. What is in the database already stays, unless the bucket has it
    further on. API keys and Idempotency-Keys are not in the bucket. Exit status 1 when something could not be read.
    """
    settings = server_settings(bucket, database)
    shown = parse_url(settings.database_url).render_as_string(hide_password=True)
    if not (dry_run or yes):
        typer.confirm(f"Restore {settings.bucket_uri} into {shown}?", abort=True, err=True)
    restored = asyncio.run(_restore(settings, dry_run=dry_run, beside_gateways=beside_gateways))
    if as_json:
        print_json(restored)
    else:
        _show(restored, dry_run=dry_run)
    for problem in restored.problems:
        stderr().print(f"not restored: {problem.key}: {problem.reason}", markup=False, soft_wrap=True)
    if restored.problems:
        raise typer.Exit(INCOMPLETE)


async def _restore(settings: Settings, *, dry_run: bool, beside_gateways: bool) -> Restored:
    store = open_store(settings.bucket_uri)
    with _Bars() as bars:
        if dry_run:
            return await restore(store, None, utc_now(), bars.advance)
        async with migrated_database(settings) as database:
            return await restore(store, database, utc_now(), bars.advance, beside_gateways=beside_gateways)


class _Bars:
    """A bar for each kind of thing, on standard error."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, console=stderr())
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def advance(self, kind: str, done: int, total: int) -> None:
        """See `restore`."""
        if kind not in self._tasks:
            self._tasks[kind] = self._progress.add_task(kind, total=total)
        self._progress.update(self._tasks[kind], completed=done, total=total)


def _show(restored: Restored, *, dry_run: bool) -> None:
    columns = ("", "Found", "Added", "Brought forward", "Kept", "Left out")
    rows = (
        (kind, *map(str, (each.found, each.added, each.brought_forward, each.kept, each.left_out)))
        for kind, each in restored.counts.items()
    )
    if dry_run:
        columns, rows = columns[:2], (row[:2] for row in rows)
    print_table(columns, rows, empty="")
    what = "would go on" if dry_run else "go on when a gateway runs"
    typer.echo(f"{restored.unfinished_jobs} unfinished job(s) {what}")
    if not any(each.found for each in restored.counts.values()):
        typer.echo("the bucket holds nothing to restore: check its URI")
    elif not dry_run:
        typer.echo("API keys are not in the bucket: make new ones with `rekindle keys create`")
