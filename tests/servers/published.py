"""Models in a bucket, made by hand: trunk manifests and versions with random tails."""

import numpy as np

from ray_cluster.vision.tails import Tail
from ray_cluster.vision.verified import reference
from services.contracts import names
from services.contracts.backbones import BackboneName
from services.contracts.base import utc_now
from services.contracts.ids import JobId, TrunkId
from services.contracts.models import ModelManifest, TrunkManifest
from services.runtime.objects.protocol import ObjectStore


def made_up_trunk(feature_dim: int, image_size: int = 32, trunk_id: str = "a" * 64) -> TrunkManifest:
    """A manifest without artefacts, for tests that bring their own engine."""
    return TrunkManifest(
        trunk_id=TrunkId(trunk_id),
        backbone=BackboneName.REKINDLE_TINY,
        weights="bundled",
        weights_sha256="0" * 64,
        image_size=image_size,
        cut="pooled",
        preprocessing_version=1,
        feature_dim=feature_dim,
        artefacts={},
        top=None,
    )


def random_tail(feature_dim: int, class_count: int, seed: int) -> Tail:
    source = np.random.default_rng(seed)
    kernel_DK = source.normal(size=(feature_dim, class_count)).astype(np.float32)
    return Tail(kernel_DK, source.normal(size=class_count).astype(np.float32))


def publish(store: ObjectStore, trunk: TrunkManifest, model_name: str, version: int, tail: Tail, labels: list[str]):
    """Writes the version's tail and, last, its manifest."""
    data = tail.to_bytes()
    tail_ref = reference(names.model_object(model_name, version, 1, "tail.safetensors"), data)
    store.put(tail_ref.key, data)
    manifest = ModelManifest(
        model_name=model_name,
        version=version,
        created_at=utc_now(),
        job_id=JobId("job_1"),
        attempt=1,
        trunk=trunk,
        tail=tail_ref,
        tail_sha256=tail.sha256(),
        labels=labels,
        spec=None,
        dataset_content_sha256=None,
        train_image_count=0,
        evaluation=None,
        predictions=None,
        fingerprint=None,
    )
    store.put(names.model_manifest(model_name, version), manifest.model_dump_json().encode())
    return manifest
