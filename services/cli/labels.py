"""`rekindle labels …`."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from services.cli.label import follow
from services.cli.session import AsJson, client_of, print_json, print_table, stdout
from services.cli.summary import print_prediction_summary
from services.contracts.jobs import BatchPrediction, JobState

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Look at batch predictions (`rekindle label`), follow and cancel them, and get their results.",
)
PredictionArgument = Annotated[str, typer.Argument(metavar="ID")]


@app.command("list")
def list_predictions(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Most batch predictions to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Batch predictions, newest first."""
    found = list(islice(client_of(context).batch_predictions.list(), limit))
    if as_json:
        print_json(found)
        return
    rows = (
        (each.id, each.state, f"{each.model_name} v{each.version}", _images(each), f"{each.created_at:%Y-%m-%d %H:%M}")
        for each in found
    )
    print_table(
        ("Batch prediction", "State", "Model", "Images", "Created"),
        rows,
        empty="no batch predictions yet: start one with `rekindle label`",
    )


def _images(prediction: BatchPrediction) -> str:
    return "-" if prediction.result is None else str(prediction.result.image_count)


@app.command()
def show(context: typer.Context, job_id: PredictionArgument, as_json: AsJson = False) -> None:
    """One batch prediction: state, stages, and the result or the failure."""
    prediction = client_of(context).batch_predictions.get(job_id)
    if as_json:
        print_json(prediction)
        return
    console = stdout()
    console.print(f"{prediction.id}: {prediction.state}. {prediction.reason}", markup=False)
    print_prediction_summary(console, prediction)


@app.command()
def events(
    context: typer.Context,
    job_id: PredictionArgument,
    after: Annotated[int, typer.Option(min=0, help="Only events with a greater number (with --json).")] = 0,
    as_json: AsJson = False,
) -> None:
    """Follows it until it ends. With --json: its events, one JSON line each."""
    client = client_of(context)
    if as_json:
        for event in client.batch_predictions.events(job_id, after=after):
            typer.echo(event.model_dump_json())
        return
    prediction = follow(client, client.batch_predictions.get(job_id), as_json=False)
    if prediction.state is JobState.FAILED:
        raise typer.Exit(1)


@app.command()
def logs(
    context: typer.Context,
    job_id: PredictionArgument,
    attempt: Annotated[int | None, typer.Option(min=1, help="(default: the newest)")] = None,
) -> None:
    """What an attempt has printed."""
    typer.echo(client_of(context).batch_predictions.logs(job_id, attempt=attempt), nl=False)


@app.command()
def cancel(context: typer.Context, job_id: PredictionArgument, as_json: AsJson = False) -> None:
    """Stops it. It is cancelled within seconds."""
    prediction = client_of(context).batch_predictions.cancel(job_id)
    if as_json:
        print_json(prediction)
    else:
        stdout().print(f"{prediction.id}: {prediction.state}", markup=False)


@app.command()
def download(
    context: typer.Context,
    job_id: PredictionArgument,
    output: Annotated[Path, typer.Argument(help="The file: `.csv` for a table, else one JSON object per line.")],
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="The list of files that were set aside instead of the labels.")
    ] = False,
) -> None:
    """Writes the labels into a file."""
    predictions = client_of(context).batch_predictions
    if quarantine:
        predictions.download_quarantine(job_id, output)
    else:
        predictions.download(job_id, output)
    stdout().print(f"written to {output}", markup=False)
