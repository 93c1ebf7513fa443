"""`rekindle predict`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from services.cli.session import AsJson, client_of, make_table, print_json, shown_share, stdout
from services.client import Rekindle, StreamedImage
from services.contracts.predictions import ImageFailed, ImageResult, PredictResponse

app = typer.Typer(add_completion=False)
IMAGES_PER_REQUEST = 16


@app.command()
def predict(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="The model's name; `base` is the pretrained classifier, if there is one.")
    ],
    images: Annotated[list[str], typer.Argument(help="Files, or s3:// URIs.")],
    top_k: Annotated[int, typer.Option(min=1, help="Labels per image.")] = 1,
    version: Annotated[int | None, typer.Option(min=1, help="(default: the newest)")] = None,
    alias: Annotated[str | None, typer.Option(help="An alias instead of a version.")] = None,
    as_json: AsJson = False,
) -> None:
    """Labels images. Exit status 1 where one of them cannot be used."""
    client = client_of(context)
    missing = [image for image in images if not image.startswith("s3://") and not Path(image).is_file()]
    if missing:
        raise FileNotFoundError(f"no file {missing[0]}")
    answered = _answers(client, model, images, top_k=top_k, version=version, alias=alias)
    if as_json:
        results = dict(answered)
        first = results[0]
        in_order = [results[number].result for number in range(len(images))]
        print_json(PredictResponse(model_name=first.model_name, version=first.version, results=in_order))
    else:
        results = _show(images, answered)
    if any(isinstance(one.result, ImageFailed) for one in results.values()):
        raise typer.Exit(1)


def _answers(
    client: Rekindle, model: str, images: list[str], *, top_k: int, version: int | None, alias: str | None
) -> Iterator[tuple[int, StreamedImage]]:
    """Each image's place and answer, as they get ready."""
    for start in range(0, len(images), IMAGES_PER_REQUEST):
        batch = images[start : start + IMAGES_PER_REQUEST]
        for one in client.predict_each(model, batch, top_k=top_k, version=version, alias=alias):
            # The rest by the same version, even if a newer one is published meanwhile.
            version, alias = one.version, None
            yield start + one.index, one


def _show(images: list[str], answered: Iterator[tuple[int, StreamedImage]]) -> dict[int, StreamedImage]:
    """A table in the order of the images that grows as they get ready; without a terminal it is printed at the end."""
    results: dict[int, StreamedImage] = {}
    with Live(console=stdout(), auto_refresh=False) as live:
        for number, one in answered:
            results[number] = one
            rows = (row for place in sorted(results) for row in _rows(images[place], results[place].result))
            live.update(make_table(("Image", "Label", "Probability"), rows), refresh=live.console.is_terminal)
    return results


def _rows(image: str, result: ImageResult) -> list[tuple[str, str, str]]:
    if isinstance(result, ImageFailed):
        return [(image, f"error: {result.message}", "")]
    return [
        (image if number == 0 else "", prediction.label, shown_share(prediction.probability))
        for number, prediction in enumerate(result.predictions)
    ]
