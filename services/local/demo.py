"""`make demo`: the main job from start to end on this machine, in a home that is thrown away.

Starts the stack, trains on a folder of images (drawn ones by default), shows the result, asks the served model about
images that it was not trained on, and stops everything. Exit status 0 only if all of it worked.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from services.cli.live import watch_job
from services.cli.session import make_table, shown_share
from services.cli.sources import name_of
from services.cli.summary import print_job_summary
from services.cli.train import weights_field
from services.client import ClientError, JobFailed, Rekindle
from services.contracts import names
from services.contracts.backbones import BackboneName
from services.contracts.datasets import Dataset, DatasetManifest, ImageRecord, Split
from services.contracts.errors import RekindleError
from services.contracts.jobs import JobState, TrainingJobSpec
from services.contracts.models import ModelVersion
from services.contracts.predictions import ImagePredicted
from services.local.background import BackgroundStack
from services.runtime.objects import open_store

DRAW_WITHIN_S = 300
SHOWN_IMAGES = 12
_NOT_TRAINED_ON = (Split.TEST, Split.VALIDATION)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to train on."""

    images: Path | None
    """Null draws some."""
    backbone: BackboneName
    weights: str | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit status."""
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as orderly as Ctrl-C
    try:
        options = parse_options(arguments)
        folder = Path(tempfile.mkdtemp(prefix="rekindle-demo-"))
        _run(options, folder, console)
    except (ClientError, RekindleError, ValidationError, OSError, subprocess.SubprocessError) as error:
        console.print(f"\nthe demo failed: {error}", markup=False, style="red", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped")
        return 130
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def parse_options(arguments: Sequence[str] | None) -> DemoOptions:
    """Options from the command line. Empty ones, as make passes them, count as not given."""
    parser = argparse.ArgumentParser(prog="make demo", description="Trains and serves a model, start to end.")
    parser.add_argument(
        "--images", default="", help="a folder with a folder of images per class, or train/, val/, test/"
    )
    parser.add_argument("--backbone", default="", choices=["", *BackboneName], help="the pretrained network")
    parser.add_argument("--weights", default="", help="its weights: a file or s3:// URI")
    given = parser.parse_args(arguments)
    images = Path(given.images).expanduser().resolve() if given.images else None
    if images is not None and not images.is_dir():
        raise NotADirectoryError(f"IMAGES={given.images} is not a folder")
    default = BackboneName.REKINDLE_TINY if images is None and not given.weights else BackboneName.MOBILENET_V2
    return DemoOptions(images, BackboneName(given.backbone) if given.backbone else default, given.weights or None)


def _run(options: DemoOptions, folder: Path, console: Console) -> None:
    began = time.monotonic()
    stack = BackgroundStack(folder / "home", os.environ)
    console.print("Starting Ray and the gateway …")
    stack.start()
    try:
        images = options.images or _draw(folder / "drawings", console)
        record = stack.wait_until_ready()
        console.print(
            f"Rekindle runs at {record.url} ({time.monotonic() - began:.0f} s), Ray at {record.ray_dashboard_url}"
        )
        with Rekindle(record.url) as client:
            _main_job(client, options, images, stack.home, console)
    except BaseException:
        stack.stop()
        console.print(f"logs are kept in {stack.log.parent}", markup=False)
        raise
    status = stack.stop()
    if status != 0:
        raise ClientError(f"the stack ended with status {status}; its log is {stack.log}")
    console.print(f"\nEverything is stopped. {time.monotonic() - began:.0f} s in all.")


def _draw(folder: Path, console: Console) -> Path:
    """Draws the default images. In a process of its own: services import nothing of the cluster's code."""
    console.print("Drawing images …")
    subprocess.run([sys.executable, "-m", "ray_cluster.vision.drawn", str(folder)], check=True, timeout=DRAW_WITHIN_S)
    return folder


def _main_job(client: Rekindle, options: DemoOptions, images: Path, home: Path, console: Console) -> None:
    name = "drawings" if options.images is None else name_of(str(images))
    dataset = client.datasets.create_from_prefix(name, images.as_uri())
    layout = dataset.layout
    if layout is not None:
        console.print(f"Dataset {name}: {len(layout.classes)} classes, {layout.image_count} images", markup=False)
    fields = {} if options.weights is None else {"weights": weights_field(options.weights, None)}
    spec = TrainingJobSpec.model_validate({"dataset_id": dataset.id, "backbone": options.backbone, **fields})
    job = client.training_jobs.create(spec)
    console.print(f"Training job {job.id} on {options.backbone}")
    job = watch_job(client.training_jobs, job.id, console)
    if job.state is not JobState.SUCCEEDED or job.result is None:
        raise JobFailed(job)
    version = client.models.version(job.result.model_name, job.result.version)
    console.print()
    print_job_summary(console, job, version, warnings=False)
    _predict(client, version, dataset, images, home, console)


def _predict(
    client: Rekindle, version: ModelVersion, dataset: Dataset, images: Path, home: Path, console: Console
) -> None:
    chosen = choose_images(_manifest(home, dataset).images)
    if not chosen:
        raise ClientError("no image was held out, so there is nothing to ask the model about")
    split = chosen[0].split
    held_out = (
        "" if split is Split.TEST else " (there is no test split; they were used to watch the training, not to train)"
    )
    console.print(f"\nPredictions for {len(chosen)} {split} images over HTTP{held_out}:")
    answer = client.predict(version.model_name, [images / image.path for image in chosen], version=version.version)
    rows: list[tuple[str, str, str, str]] = []
    right = 0
    for image, result in zip(chosen, answer.results, strict=True):
        if not isinstance(result, ImagePredicted):
            raise ClientError(f"{image.path} got no prediction: {result.message}")
        best = result.predictions[0]
        right += best.label == image.label
        rows.append((image.path, image.label, best.label, shown_share(best.probability)))
    console.print(make_table(("Image", "True label", "Predicted", "Probability"), rows))
    console.print(f"{right} of {len(chosen)} are right")


def _manifest(home: Path, dataset: Dataset) -> DatasetManifest:
    """What preflight wrote about the dataset: which image is in which split."""
    store = open_store((home / "bucket").as_uri())
    prefix = names.dataset_manifest(dataset.id, "").removesuffix(".json")
    for info in store.list(prefix):
        return DatasetManifest.model_validate_json(store.get(info.key))
    raise ClientError(f"preflight left no manifest under {prefix}")


def choose_images(images: Sequence[ImageRecord], count: int = SHOWN_IMAGES) -> list[ImageRecord]:
    """Test images, or validation images where there are none: of each class in turn, so that all are shown."""
    for split in _NOT_TRAINED_ON:
        by_class: dict[str, list[ImageRecord]] = {}
        for image in images:
            if image.split is split:
                by_class.setdefault(image.label, []).append(image)
        if by_class:
            longest = max(map(len, by_class.values()))
            turns = [of_class[n] for n in range(longest) for of_class in by_class.values() if n < len(of_class)]
            return sorted(turns[:count], key=lambda image: image.path)
    return []


if __name__ == "__main__":
    sys.exit(main())
