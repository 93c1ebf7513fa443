"""`rekindle predict`."""

from pathlib import Path
from typing import Annotated

import typer

from services.cli.session import AsJson, client_of, print_json, print_table, shown_share
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
    answers: list[PredictResponse] = []
    for start in range(0, len(images), IMAGES_PER_REQUEST):
        batch = images[start : start + IMAGES_PER_REQUEST]
        answers.append(client.predict(model, batch, top_k=top_k, version=version, alias=alias))
        # The rest by the same version, even if a newer one is published meanwhile.
        version, alias = answers[0].version, None
    results = [result for answer in answers for result in answer.results]
    if as_json:
        print_json(answers[0].model_copy(update={"results": results}))
    else:
        rows = (row for image, result in zip(images, results, strict=True) for row in _rows(image, result))
        print_table(("Image", "Label", "Probability"), rows, empty="no images")
    if any(isinstance(result, ImageFailed) for result in results):
        raise typer.Exit(1)


def _rows(image: str, result: ImageResult) -> list[tuple[str, str, str]]:
    if isinstance(result, ImageFailed):
        return [(image, f"error: {result.message}", "")]
    return [
        (image if number == 0 else "", prediction.label, shown_share(prediction.probability))
        for number, prediction in enumerate(result.predictions)
    ]
