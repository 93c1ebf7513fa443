"""Jobs that go on from a published version: what of their spec comes from it, and whether the rest fits it."""

from collections import Counter

from services.contracts.datasets import Dataset
from services.contracts.errors import ParentUnusable
from services.contracts.jobs import ParentVersion, TrainingJobSpec, Weights, WeightsUri
from services.contracts.models import ModelManifest, TrunkManifest


def resolve(spec: TrainingJobSpec, parent: ModelManifest, dataset: Dataset) -> TrainingJobSpec:
    """The spec with everything filled in that its parent decides.

    Raises `ParentUnusable` where the parent was fine-tuned, or the spec wants another trunk than the parent's, more
    blocks than that has, or renames classes that are not there.
    """
    if parent.tail_kind != "linear":
        raise _refused(
            parent,
            "was fine-tuned, and only a version whose head alone was trained can be a parent: leave `parent` out, or "
            "name another",
            "parent",
        )
    trunk = parent.trunk
    wanted = {
        "backbone": (spec.backbone if "backbone" in spec.model_fields_set else None, trunk.backbone),
        "image_size": (spec.image_size, trunk.image_size),
    }
    for name, (asked, parents) in wanted.items():
        if asked is not None and asked != parents:
            raise _refused(parent, f"has {name} {parents} and the job asks for {asked}: leave `{name}` out", name)
    if spec.weights is not None and not _same_weights(spec.weights, trunk):
        raise _refused(parent, "has other weights than the job asks for: leave `weights` out", "weights")
    _check_renames(spec, parent, dataset)
    resolved = spec.model_copy(
        update={
            "parent": ParentVersion(model_name=parent.model_name, version=parent.version),
            "model_name": spec.model_name or parent.model_name,
            "backbone": trunk.backbone,
            "weights": _weights(trunk),
            "image_size": trunk.image_size,
        }
    )
    why = resolved.train_refusal()
    if why is not None:
        raise _refused(parent, f"cannot be trained so: {why}", "train")
    return resolved


def _weights(trunk: TrunkManifest) -> Weights:
    """The trunk's weights by their content: their file need not be there any more, and must not be another."""
    if isinstance(trunk.weights, WeightsUri):
        return trunk.weights.model_copy(update={"sha256": trunk.weights_sha256})
    return trunk.weights


def _same_weights(weights: Weights, trunk: TrunkManifest) -> bool:
    if isinstance(weights, WeightsUri) and weights.sha256 is not None:
        return weights.sha256 == trunk.weights_sha256
    if isinstance(weights, WeightsUri) and isinstance(trunk.weights, WeightsUri):
        return weights.uri == trunk.weights.uri
    return weights == trunk.weights


def _check_renames(spec: TrainingJobSpec, parent: ModelManifest, dataset: Dataset) -> None:
    renames = spec.rename_classes
    for old in renames:
        if old not in parent.labels:
            raise _refused(parent, f"has no class {old!r} to rename: its classes are {_shown(parent.labels)}", old)
    names = Counter(renames.get(label, label) for label in parent.labels)
    for new in renames.values():
        if names[new] > 1:
            raise _refused(parent, f"would have two classes {new!r}: give each one class a name of its own", new)
        if dataset.layout is not None and new not in dataset.layout.classes:
            raise _refused(
                parent,
                f"has a class renamed to {new!r}, which the dataset does not have: its classes are "
                f"{_shown(dataset.layout.classes)}",
                new,
            )


def _refused(parent: ModelManifest, why: str, value: str) -> ParentUnusable:
    return ParentUnusable(f"version {parent.version} of model {parent.model_name!r} {why}", {"value": value})


def _shown(labels: list[str], most: int = 10) -> str:
    return ", ".join(map(repr, labels[:most])) + (", …" if len(labels) > most else "")
