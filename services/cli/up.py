"""`rekindle up`."""

from pathlib import Path
from typing import Annotated

import typer

from services.cli.session import stdout
from services.local.stack import run_stack
from services.runtime.settings import Settings

app = typer.Typer(add_completion=False)


@app.command()
def up(
    home: Annotated[
        Path | None, typer.Option(help="Where everything is kept. (REKINDLE_HOME; default .rekindle)")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="(REKINDLE_PORT; default 8080)")] = None,
) -> None:
    """Runs everything on this machine until Ctrl-C. A second start finds all models and unfinished jobs again."""
    given = {name: value for name, value in {"home": home, "port": port}.items() if value is not None}
    console = stdout()

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    def ready(url: str) -> None:
        say(f"ready at {url} (Ctrl-C stops it)")
        say(f"API description: {url}/docs. Try: rekindle --url {url} train FOLDER")

    settings = Settings.model_validate(given) if given else Settings()
    if settings.tls is not None:
        raise ValueError("`rekindle up` speaks plain HTTP on this machine: unset REKINDLE_TLS_CERTIFICATE and _KEY")
    run_stack(settings, say, ready=ready)
