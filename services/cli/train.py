"""`rekindle train`."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.live import watch_job
from services.cli.session import AsJson, client_of, print_json, stderr, stdout
from services.cli.sources import find_or_add_dataset, is_uri
from services.cli.summary import print_job_summary
from services.client import Rekindle
from services.contracts.backbones import BackboneName
from services.contracts.jobs import AUTO, JobState, TrainingJob, TrainingJobSpec
from services.contracts.models import ModelVersion

app = typer.Typer(add_completion=False)
_NAMED_WEIGHTS = ("imagenet", "bundled")
_CANDIDATE = re.compile(r"(?P<backbone>\w+)(?:@(?P<size>\d{1,5}))?(?:=(?P<weights>.+))?")


def weights_field(weights: str, sha256: str | None) -> Any:
    """The spec's `weights` for what was typed: a name, a URI, or a local file.

    Raises:
        FileNotFoundError: neither a name nor a URI, and there is no such file.
    """
    if weights in _NAMED_WEIGHTS:
        return weights
    if not is_uri(weights):
        file = Path(weights).expanduser().resolve()
        if not file.is_file():
            raise FileNotFoundError(f"no weights file {file}: name a file, an s3:// URI, or one of {_NAMED_WEIGHTS}")
        weights = file.as_uri()
    return {"uri": weights, "sha256": sha256}


def candidates_field(candidates: list[str]) -> list[dict[str, Any]]:
    """The spec's `candidates` for what was typed. Raises `typer.BadParameter`, and `FileNotFoundError` for weights."""
    fields: list[dict[str, Any]] = []
    for candidate in candidates:
        match = _CANDIDATE.fullmatch(candidate)
        if match is None:
            raise typer.BadParameter(
                "--candidate wants BACKBONE[@SIZE][=WEIGHTS], e.g. --candidate resnet50@160=weights/resnet50.h5"
            )
        size, weights = match["size"], match["weights"]
        fields.append(
            {
                "backbone": match["backbone"],
                "image_size": None if size is None else int(size),
                "weights": None if weights is None else weights_field(weights, None),
            }
        )
    return fields


def parent_field(model: str | None, version: int | None) -> Any:
    """The spec's `parent` for what was typed. Raises `typer.BadParameter` for a version of no model."""
    if model is None:
        if version is not None:
            raise typer.BadParameter("--parent-version needs --parent MODEL")
        return None
    return {"model_name": model} | ({} if version is None else {"version": version})


def renames_field(renames: list[str]) -> dict[str, str]:
    """The spec's `rename_classes` for what was typed. Raises `typer.BadParameter`."""
    pairs = [rename.partition("=") for rename in renames]
    for old, _, new in pairs:
        if not old or not new:
            raise typer.BadParameter("--rename-class wants OLD=NEW, e.g. --rename-class 'tulip=red tulip'")
    return {old: new for old, _, new in pairs}


@app.command()
def train(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(help="A folder with a folder of images per class, an s3:// prefix, or a dataset's id or name."),
    ],
    model: Annotated[
        str | None, typer.Option(help="The model that gets a new version. (default: the dataset's name)")
    ] = None,
    parent: Annotated[str | None, typer.Option(help="Retrain this model: start from its weights, and compare.")] = None,
    parent_version: Annotated[
        int | None, typer.Option(min=1, help="The parent's version. (default: its newest)")
    ] = None,
    rename_class: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="What a class of the parent is called now. May be given several times."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"The pretrained network: {', '.join(BackboneName)}; or {AUTO}, which tries several."
        ),
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BACKBONE[@SIZE][=WEIGHTS]",
            help="What --backbone auto chooses from. May be given several times. (default: five with ImageNet weights)",
        ),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="`imagenet`, `bundled`, a file, or an s3:// URI.")] = None,
    weights_sha256: Annotated[
        str | None, typer.Option(help="Refuse the weights where their SHA-256 is another.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side in pixels that images are resized to.")] = None,
    part: Annotated[
        str | None, typer.Option("--train", help="What is trained: `head`, `top_blocks:N`, or `all`.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Most passes over the training images.")] = None,
    weight_decay: Annotated[
        str | None, typer.Option(help="L2 penalty on the head's weights; `auto` finds the best of many.")
    ] = None,
    augmentation: Annotated[str | None, typer.Option(help="`off`, `light` or `strong`.")] = None,
    class_weighting: Annotated[str | None, typer.Option(help="`none` or `balanced`.")] = None,
    validation_fraction: Annotated[
        float | None, typer.Option(help="Share held out where there is no validation split.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed and data give the same weights.")] = None,
    min_workers: Annotated[int | None, typer.Option(help="Training begins with as many.")] = None,
    max_workers: Annotated[
        int | None, typer.Option(help="Training grows to as many while the cluster has room.")
    ] = None,
    market: Annotated[str | None, typer.Option(help="Run on `any` nodes, on `spot` or on `on_demand` ones.")] = None,
    on_demand_after_s: Annotated[
        float | None, typer.Option(help="With --market spot: take on-demand nodes after waiting so long.")
    ] = None,
    accelerator: Annotated[str | None, typer.Option(help="Run on nodes with this accelerator only, e.g. L4.")] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Let the server read the folder where it is; do not upload.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return as soon as the job is accepted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Trains a classifier and shows how it goes. Ctrl-C stops the display, not the job."""
    client, console = client_of(context), stderr() if as_json else stdout()
    given = {
        "model_name": model,
        "parent": parent_field(parent, parent_version),
        "rename_classes": None if rename_class is None else renames_field(rename_class),
        "backbone": backbone,
        "candidates": None if candidate is None else candidates_field(candidate),
        "weights": None if weights is None else weights_field(weights, weights_sha256),
        "image_size": image_size,
        "train": part,
        "epochs": epochs,
        "weight_decay": weight_decay,
        "augmentation": augmentation,
        "class_weighting": class_weighting,
        "validation_fraction": validation_fraction,
        "seed": seed,
        "resources": _given(
            min_workers=min_workers,
            max_workers=max_workers,
            market=market,
            on_demand_after_s=on_demand_after_s,
            accelerator=accelerator,
        )
        or None,
    }
    fields = _given(**given)
    # Checked before anything is uploaded, with an id that only stands in.
    TrainingJobSpec.model_validate({"dataset_id": "", **fields})
    dataset = find_or_add_dataset(client, source, in_place=in_place, console=console)
    job = client.training_jobs.create(TrainingJobSpec.model_validate({"dataset_id": dataset.id, **fields}))
    console.print(f"job {job.id} trains {job.model_name} on dataset {dataset.id}", markup=False)
    if not detach:
        job = follow(client, job, as_json=as_json)
    if as_json:
        print_json(job)
    if not detach and job.state is not JobState.SUCCEEDED:
        raise typer.Exit(1)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def follow(client: Rekindle, job: TrainingJob, *, as_json: bool) -> TrainingJob:
    """Shows the job until it ends, then its summary; returns it as it ended."""
    console = stderr() if as_json else stdout()
    try:
        job = watch_job(client.training_jobs, job.id, console)
    except KeyboardInterrupt:
        console.print(
            f"\nthe job goes on: `rekindle jobs events {job.id}` shows it, `rekindle jobs cancel {job.id}` ends it"
        )
        raise
    print_job_summary(console, job, published_version(client, job), warnings=False)
    return job


def published_version(client: Rekindle, job: TrainingJob) -> ModelVersion | None:
    """The version that the job published, if it did."""
    return None if job.result is None else client.models.version(job.result.model_name, job.result.version)
