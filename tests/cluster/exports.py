"""Every export of a version, unpacked and run as its README says."""

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np

from ray_cluster.vision import images
from services.contracts.exports import TOLERANCE, ExportedModel, ExportFormat
from services.contracts.models import ModelManifest
from services.runtime.objects import ObjectStore


def unpacked(store: ObjectStore, model: ModelManifest, folder: Path) -> Iterator[tuple[ExportedModel, Path]]:
    """Each format's archive in a folder of its own."""
    from ray_cluster.export.archive import build

    for form, data in build(store, model, list(ExportFormat)).items():
        place = folder / form
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(place)
        yield ExportedModel.model_validate_json((place / "model.json").read_text()), place


def check_exports(
    store: ObjectStore,
    model: ModelManifest,
    expected: dict[Path, list[dict[str, Any]]],
    folder: Path,
    *,
    readme: bool = False,
) -> None:
    """Every export says of these pictures what was evaluated; with `readme`, the README's program does, too."""
    from ray_cluster.export.formats import load

    for about, place in unpacked(store, model, folder):
        assert about.labels == model.labels == (place / "labels.txt").read_text().splitlines()
        classify = load(about.format, place / about.file)
        for path, predictions in expected.items():
            pixels_BHWC = images.decode(path.read_bytes(), about.pixels.width)[np.newaxis]
            check(classify(pixels_BHWC)[0], about, predictions)
        if readme:
            path, predictions = next(iter(expected.items()))
            check(as_the_readme_says(place, path), about, predictions)


def check(actual_K: np.ndarray, about: ExportedModel, predictions: list[dict[str, Any]]) -> None:
    of_label = {each["label"]: each["probability"] for each in predictions}
    expected_K = [of_label[label] for label in about.labels]
    np.testing.assert_allclose(actual_K, expected_K, rtol=0, atol=TOLERANCE)


def as_the_readme_says(place: Path, picture: Path) -> np.ndarray:
    """The probabilities that the README's program gets for a picture."""
    (place / "picture.jpg").write_bytes(picture.read_bytes())
    program = re.search(r"```python\n(.*)```", (place / "README.md").read_text(), re.DOTALL)
    assert program is not None
    names: dict[str, Any] = {}
    with chdir(place):
        exec(program[1], names)
    return names["probabilities"]
