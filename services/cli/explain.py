"""`rekindle explain`."""

from pathlib import Path
from typing import Annotated

import typer

from services.cli.session import client_of, print_json, shown_share, stdout

app = typer.Typer(add_completion=False)


@app.command()
def explain(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="The model's name; `base` is the pretrained classifier, if there is one.")
    ],
    image: Annotated[str, typer.Argument(help="A file, or an s3:// URI.")],
    output: Annotated[Path, typer.Option(help="The PNG file that is written.")] = Path("heat.png"),
    label: Annotated[str | None, typer.Option(help="The label to explain. (default: the most probable one)")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="(default: the newest)")] = None,
    alias: Annotated[str | None, typer.Option(help="An alias instead of a version.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the map as JSON instead of writing a file.")] = False,
) -> None:
    """Draws over an image where the evidence for a label lies: yellow to red."""
    client = client_of(context)
    if not image.startswith("s3://") and not Path(image).is_file():
        raise FileNotFoundError(f"no file {image}")
    if as_json:
        print_json(client.explain(model, image, label=label, version=version, alias=alias))
        return
    picture = client.explain_picture(model, image, label=label, version=version, alias=alias)
    output.write_bytes(picture.png)
    stdout().print(f"{picture.label} {shown_share(picture.probability)}, drawn into {output}", markup=False)
