"""`rekindle datasets …`."""

from itertools import islice
from typing import Annotated

import typer

from services.cli.session import AsJson, client_of, print_json, print_table, stderr, stdout
from services.cli.sources import add_dataset
from services.contracts.datasets import Dataset, PrefixSource

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Register and list datasets.")


@app.command()
def add(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A folder with a folder of images per class, or an s3:// prefix.")],
    name: Annotated[str | None, typer.Option(help="(default: the folder's name)")] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Let the server read the folder where it is; do not upload.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Registers an s3:// prefix, or uploads a folder."""
    dataset = add_dataset(client_of(context), source, name, in_place=in_place, console=stderr())
    if as_json:
        print_json(dataset)
        return
    console = stdout()
    console.print(f"dataset {dataset.id} ({dataset.name}): {_content(dataset)}", markup=False)
    console.print(f"train on it with `rekindle train {dataset.name}`", markup=False)


@app.command("list")
def list_datasets(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Most datasets to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Datasets, newest first."""
    datasets = list(islice(client_of(context).datasets.list(), limit))
    if as_json:
        print_json(datasets)
        return
    rows = (
        (dataset.id, dataset.name, _content(dataset), _origin(dataset), f"{dataset.created_at:%Y-%m-%d %H:%M}")
        for dataset in datasets
    )
    print_table(
        ("Dataset", "Name", "Content", "Source", "Created"),
        rows,
        empty="no datasets yet: add one with `rekindle datasets add`",
    )


def _content(dataset: Dataset) -> str:
    if dataset.layout is None:
        return dataset.state.replace("_", " ")
    count = dataset.layout.image_count
    return f"{len(dataset.layout.classes)} classes, {'very many' if count is None else count} images"


def _origin(dataset: Dataset) -> str:
    return dataset.source.uri if isinstance(dataset.source, PrefixSource) else "upload"
