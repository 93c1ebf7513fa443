"""Publishes a pretrained classifier itself as the model `base`: its trunk, its top as the tail, its labels."""

import json
from collections import Counter

import ray
from pydantic import TypeAdapter, ValidationError

from ray_cluster.train import publish, tasks
from ray_cluster.train.context import AttemptContext, running
from ray_cluster.train.stages import PendingTrunk
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.verified import read_verified
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.errors import CallerError, InternalError, NotFound, WeightsUnusable
from services.contracts.jobs import BaseModelSpec, Stage
from services.contracts.models import ModelManifest, ObjectRef, TrunkManifest, TrunkRecipe
from services.runtime.objects import ObjectStore, open_object

_NAMES = TypeAdapter(list[str])
_CLASS_INDEX = TypeAdapter(dict[int, tuple[str, str]])


def import_base(context: AttemptContext) -> ModelManifest:
    """Publishes the classifier, or finds the version that is the same already.

    Raises `WeightsUnusable` when the weights have no top, `CallerError` when the labels do not fit it.
    """
    base = context.record.base
    if base is None:
        raise InternalError(f"job {context.record.job_id} is to import a base model and says not which")
    pending = PendingTrunk(
        context, TrunkRecipe(backbone=base.backbone, weights=base.weights, image_size=base.image_size)
    )
    with running(context, Stage.FEATURES) as stage:
        trunk = pending.wait()
        stage.found_trunk(trunk.trunk_id)
    if trunk.top is None:
        raise WeightsUnusable(f"the weights of {base.backbone} have no classifier: use weights with their top")
    tail = Tail.from_bytes(read_verified(context.store, trunk.top))
    labels = read_labels(base, tail.class_count)
    with running(context, Stage.PUBLISH) as stage:
        same = _find_same(context.store, context.record.model_name, trunk, tail, labels)
        if same is not None:
            stage.skip()
            return same
        return _publish(context, trunk, tail, labels)


def read_labels(base: BaseModelSpec, class_count: int) -> list[str]:
    """The classifier's labels, one for each class, made distinct."""
    data, source = _label_data(base, class_count)
    labels = parse_labels(data, source)
    if len(labels) != class_count:
        raise CallerError(f"{source} has {len(labels)} labels, the classifier has {class_count} classes")
    return labels


def _label_data(base: BaseModelSpec, class_count: int) -> tuple[bytes, str]:
    """The labels' file and what to call it."""
    if base.labels_uri is None and base.weights == "imagenet":
        return ray.get(tasks.imagenet_labels_task.remote()), "Keras' class index of ImageNet"
    if base.labels_uri is None:
        raise CallerError(
            f"base model {base.backbone} needs labels: give the URI of a JSON list of {class_count} names"
        )
    folder, name = open_object(base.labels_uri)
    try:
        return folder.get(name), base.labels_uri
    except NotFound as error:
        raise CallerError(f"{base.labels_uri} does not exist: give the URI of the classifier's labels") from error


def parse_labels(data: bytes, uri: str) -> list[str]:
    """A JSON list of names, or Keras' class index `{"0": ["n01440764", "tench"], …}`, in the order of the index.

    ImageNet has two classes `crane` and two `maillot`: repeated names get their synset added. Raises `CallerError`.
    """
    try:
        document = json.loads(data)
        if isinstance(document, list):
            return _NAMES.validate_python(document)
        index = _CLASS_INDEX.validate_python(document)
    except (ValueError, ValidationError) as error:
        raise CallerError(f"{uri} is neither a JSON list of names nor a Keras class index: {error}") from error
    if sorted(index) != list(range(len(index))):
        raise CallerError(f"{uri} does not number its {len(index)} classes from 0")
    counts = Counter(name for _, name in index.values())
    ordered = [index[position] for position in range(len(index))]
    return [name if counts[name] == 1 else f"{name} ({synset})" for synset, name in ordered]


def _find_same(
    store: ObjectStore, model_name: str, trunk: TrunkManifest, tail: Tail, labels: list[str]
) -> ModelManifest | None:
    """The newest version that is shown, where it is the same: going back to an earlier classifier is a new version."""
    for version in publish.list_versions(store, model_name):
        model = publish.read_version(store, model_name, version)
        if model is not None and store.head(names.model_deletion(model_name, version)) is None:
            same = (model.trunk.trunk_id, model.tail_sha256, model.labels) == (trunk.trunk_id, tail.sha256(), labels)
            return model if same else None
    return None


def _publish(context: AttemptContext, trunk: TrunkManifest, tail: Tail, labels: list[str]) -> ModelManifest:
    def describe(version: int, tail_ref: ObjectRef, predictions_ref: ObjectRef | None) -> ModelManifest:
        return ModelManifest(
            model_name=context.record.model_name,
            version=version,
            created_at=utc_now(),
            job_id=context.record.job_id,
            attempt=context.attempt,
            trunk=trunk,
            tail=tail_ref,
            tail_sha256=tail.sha256(),
            labels=labels,
            spec=None,
            dataset_content_sha256=None,
            train_image_count=0,
            evaluation=None,
            predictions=predictions_ref,
            fingerprint=None,
        )

    record = context.record
    return publish.publish(context.store, record.model_name, record.job_id, context.attempt, tail, None, describe)
