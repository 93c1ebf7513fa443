"""Building an archive: write the model, check that it says what is served, and pack it. Imports TensorFlow.

Array axes: B batch, H height, W width, C channel, K class.
"""

import io
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ray_cluster.export import formats, guide
from ray_cluster.serve.model_tails import TailKey, load_tail
from ray_cluster.vision.engines import load_engine
from ray_cluster.vision.verified import put_by_content, put_or_adopt
from ray_cluster.vision.whole import load_version
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.errors import InternalError, NotFound
from services.contracts.exports import TOLERANCE, ExportedModel, ExportedPixels, ExportFormat, ExportManifest
from services.contracts.models import ModelManifest
from services.runtime.objects import ObjectStore

_CHECKED_IMAGES = 4
_TILES = 8


def export(store: ObjectStore, model: ModelManifest, form: ExportFormat) -> ExportManifest:
    """Builds the archive and writes it, unless it is there.

    May be repeated, interrupted, and run by several processes at once: an archive is named by its content, and its
    manifest is written after it. Raises as `build` does.
    """
    name, version = model.model_name, model.version
    key = names.model_export(name, version, form)
    standing = _read(store, key)
    if standing is not None:
        return standing
    data = build(store, model, [form])[form]
    ref = put_by_content(store, lambda sha256: names.model_export_archive(name, version, form, sha256), data)
    manifest = ExportManifest(model_name=name, version=version, format=form, archive=ref, created_at=utc_now())
    return put_or_adopt(store, key, manifest.model_dump_json().encode(), lambda: _read(store, key)) or manifest


def build(store: ObjectStore, model: ModelManifest, forms: Sequence[ExportFormat]) -> dict[ExportFormat, bytes]:
    """The version's archives.

    Raises:
        CorruptObject, NotFound, WeightsUnusable: as `whole.load_version` does.
        InternalError: what was written does not say what is served.
    """
    network = load_version(store, model)
    images_BHWC = _images(model.trunk.image_size)
    served_BK = _served(store, model, images_BHWC)
    archives: dict[ExportFormat, bytes] = {}
    for form in forms:
        with tempfile.TemporaryDirectory(prefix="rekindle-export-") as folder:
            path = Path(folder) / formats.FILES[form]
            formats.write(network, form, path)
            found_BK = formats.load(form, path)(images_BHWC)
            difference = float(np.abs(found_BK - served_BK).max())
            if not difference <= TOLERANCE:
                raise InternalError(
                    f"as {form} the version's probabilities differ by {difference:.1e} from those that are served"
                )
            archives[form] = _pack(Path(folder), _about(model, network, form))
    return archives


def _read(store: ObjectStore, key: str) -> ExportManifest | None:
    """The manifest, where it can be read and its archive is there."""
    try:
        manifest = ExportManifest.model_validate_json(store.get(key))
    except (NotFound, ValidationError):
        return None
    info = store.head(manifest.archive.key)
    return manifest if info is not None and info.size_bytes == manifest.archive.size_bytes else None


def _images(size: int) -> npt.NDArray[np.uint8]:
    """Coloured tiles, uint8 [B, size, size, 3]."""
    tiles_BHWC = np.random.default_rng(0).integers(0, 256, (_CHECKED_IMAGES, _TILES, _TILES, 3), np.uint8)
    repeats = -(-size // _TILES)
    return np.ascontiguousarray(tiles_BHWC.repeat(repeats, axis=1).repeat(repeats, axis=2)[:, :size, :size])


def _served(store: ObjectStore, model: ModelManifest, images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What serving says, by the code that serves."""
    tail = load_tail(store, model.trunk, TailKey(model.model_name, model.version)).tail
    return tail.probabilities(load_engine(store, model.trunk).features(images_BHWC))


def _about(model: ModelManifest, network: keras.Model, form: ExportFormat) -> ExportedModel:
    source, result = formats.tensors(network, form)
    size = model.trunk.image_size
    return ExportedModel(
        model_name=model.model_name,
        version=model.version,
        format=form,
        file=formats.FILES[form],
        labels=model.labels,
        input=source,
        output=result,
        pixels=ExportedPixels(width=size, height=size, version=model.trunk.preprocessing_version),
        tolerance=TOLERANCE,
        backbone=model.trunk.backbone,
        weights_sha256=model.tail_sha256,
        job_id=model.job_id,
        created_at=model.created_at,
    )


def _pack(folder: Path, about: ExportedModel) -> bytes:
    """A zip archive of what is in the folder, and of what there is to know about it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # weights hardly get smaller
        for name, text in (
            ("README.md", guide.readme(about)),
            ("labels.txt", guide.labels(about)),
            ("model.json", about.model_dump_json(indent=2)),
        ):
            archive.writestr(_entry(name), text)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.writestr(_entry(file.relative_to(folder).as_posix()), file.read_bytes())
    return packed.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    """A file that everybody may read, of no particular time."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o644 << 16
    return entry
