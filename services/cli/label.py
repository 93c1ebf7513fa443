"""`rekindle label`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.live import watch_job
from services.cli.session import AsJson, client_of, print_json, stderr, stdout
from services.cli.sources import find_images
from services.cli.summary import print_prediction_summary
from services.client import Rekindle
from services.contracts.batch_predictions import BatchPredictionSpec
from services.contracts.jobs import BatchPrediction, JobState

app = typer.Typer(add_completion=False)
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="A file for the labels: `.csv` for a table, else one JSON object per line."),
]


@app.command()
def label(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="The model's name; `base` is the pretrained classifier, if there is one.")
    ],
    source: Annotated[
        str,
        typer.Argument(
            help="An s3:// prefix, a folder that the server can read, or a dataset's id or name: every file in it."
        ),
    ],
    version: Annotated[int | None, typer.Option(min=1, help="(default: the newest)")] = None,
    alias: Annotated[str | None, typer.Option(help="An alias instead of a version.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Labels per image. (default: 5)")] = None,
    market: Annotated[str | None, typer.Option(help="Run on `any` nodes, on `spot` or on `on_demand` ones.")] = None,
    on_demand_after_s: Annotated[
        float | None, typer.Option(help="With --market spot: take on-demand nodes after waiting so long.")
    ] = None,
    output: Output = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return as soon as it is accepted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Labels every image of a prefix and shows how it goes. Ctrl-C stops the display, not the work."""
    if detach and output is not None:
        raise typer.BadParameter("--output needs the results: leave --detach out, or `rekindle labels download` later")
    client, console = client_of(context), stderr() if as_json else stdout()
    spec = BatchPredictionSpec.model_validate(
        {
            "model_name": model,
            "source": find_images(client, source),
            "resources": _given(market=market, on_demand_after_s=on_demand_after_s),
            **_given(version=version, alias=alias, top_k=top_k),
        }
    )
    prediction = client.batch_predictions.create(spec)
    console.print(f"{prediction.id} labels {source} with {model} version {prediction.version}", markup=False)
    if not detach:
        prediction = follow(client, prediction, as_json=as_json)
    if output is not None and prediction.state is JobState.SUCCEEDED:
        client.batch_predictions.download(prediction.id, output)
        console.print(f"labels written to {output}", markup=False)
    if as_json:
        print_json(prediction)
    if not detach and prediction.state is not JobState.SUCCEEDED:
        raise typer.Exit(1)


def follow(client: Rekindle, prediction: BatchPrediction, *, as_json: bool) -> BatchPrediction:
    """Shows it until it ends, then its summary; returns it as it ended."""
    console = stderr() if as_json else stdout()
    try:
        prediction = watch_job(client.batch_predictions, prediction.id, console)
    except KeyboardInterrupt:
        console.print(
            f"\nit goes on: `rekindle labels events {prediction.id}` shows it, `rekindle labels cancel "
            f"{prediction.id}` ends it"
        )
        raise
    print_prediction_summary(console, prediction, warnings=False)
    return prediction


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
