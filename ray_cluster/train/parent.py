"""The version that a retraining job goes on from, and what is read of it."""

from dataclasses import dataclass

from ray_cluster.train import fit_data, publish
from ray_cluster.train.fit_job import WarmStart
from services.contracts import names
from services.contracts.base import Sha256
from services.contracts.datasets import DatasetManifest
from services.contracts.errors import NotFound, ParentUnusable
from services.contracts.jobs import TrainingJobSpec
from services.contracts.models import ModelManifest, TrunkManifest
from services.runtime.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class Parent:
    """A published version, and its classes as the dataset calls them, in the order of its tail."""

    manifest: ModelManifest
    labels: list[str]

    def warm_start(self) -> WarmStart:
        """What the fit needs of it."""
        report = self.manifest.fit
        return WarmStart(
            tail=self.manifest.tail, labels=self.labels, temperature=1.0 if report is None else report.temperature
        )


def read_parent(store: ObjectStore, spec: TrainingJobSpec, trunk: TrunkManifest) -> Parent | None:
    """The spec's parent, or None where it names none.

    `trunk` gives the pooled features that heads are fitted on. Raises `ParentUnusable` when the parent is gone, is more
    than a head, or is on another trunk.
    """
    if spec.parent is None or spec.parent.version is None:
        return None
    name, version = spec.parent.model_name, spec.parent.version
    manifest = publish.read_version(store, name, version)
    if manifest is None:
        raise ParentUnusable(f"version {version} of model {name!r} is gone: train without a parent, or name another")
    if manifest.tail_kind != "linear":
        raise ParentUnusable(
            f"version {version} of model {name!r} was fine-tuned, and only a version whose head alone was trained can "
            "be a parent: train without a parent, or name another",
            {"tail_kind": manifest.tail_kind},
        )
    if manifest.trunk.trunk_id != trunk.trunk_id:
        raise ParentUnusable(
            f"version {version} of model {name!r} has another trunk than {trunk.backbone} with these weights has in "
            "this release: train without a parent",
            {"parent_trunk_id": manifest.trunk.trunk_id, "trunk_id": trunk.trunk_id},
        )
    return Parent(manifest, [spec.rename_classes.get(label, label) for label in manifest.labels])


def find_trained_images(store: ObjectStore, parent: ModelManifest) -> frozenset[Sha256] | None:
    """The images that the parent's weights were trained on, or None where the manifest of its dataset is gone."""
    if parent.spec is None:
        return None
    for info in store.list(names.dataset_manifests(parent.spec.dataset_id)):
        try:
            manifest = DatasetManifest.model_validate_json(store.get(info.key))
        except NotFound:
            continue
        if manifest.content_sha256() == parent.dataset_content_sha256:
            trained = fit_data.trained_splits(manifest, parent.spec)
            return frozenset(image.sha256 for image in manifest.images if image.split in trained)
    return None
