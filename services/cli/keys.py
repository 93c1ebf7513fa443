"""`rekindle keys …`: works on the server's database, so it runs where the server runs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from services.cli.server import migrated_database
from services.cli.session import AsJson, print_json, print_table, stderr
from services.runtime.auth import Scope, create_key, list_keys, revoke_key
from services.runtime.database import Database
from services.runtime.settings import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Create and revoke API keys, on the server itself.")
Result = TypeVar("Result")


def _on_database(work: Callable[[Database], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with migrated_database(Settings()) as database:
            return await work(database)

    return asyncio.run(run())


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[list[Scope], typer.Option(help="What it permits; may be given several times.")] = [Scope.ADMIN],  # noqa: B006
) -> None:
    """Makes a key and prints it, this once."""
    created = _on_database(lambda database: create_key(database, name, scope))
    stderr().print(f"key {created.key.id} for {name}, this is the only time it is shown:", markup=False)
    typer.echo(created.plaintext)


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """Keys, without their secrets."""
    keys = _on_database(list_keys)
    if as_json:
        print_json(keys)
        return
    rows = (
        (
            key.id,
            key.name,
            " ".join(key.scopes),
            f"{key.created_at:%Y-%m-%d}",
            f"{key.revoked_at:%Y-%m-%d}" if key.revoked_at else "",
        )
        for key in keys
    )
    print_table(("Key", "Name", "Scopes", "Created", "Revoked"), rows, empty="no keys")


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="KEY_ID")]) -> None:
    """Ends a key within seconds."""
    key = _on_database(lambda database: revoke_key(database, key_id))
    typer.echo(f"key {key.id} ({key.name}) is revoked")
