"""Engines run trunks. `load_engine` picks the fastest one that the trunk has an artefact for."""

from ray_cluster.vision.engines.cuts import HalfPrecisionEngine, PixelEngine
from ray_cluster.vision.engines.litert import LiteRTEngine
from ray_cluster.vision.engines.protocol import Engine
from ray_cluster.vision.verified import read_verified
from services.contracts.errors import CorruptObject
from services.contracts.models import TrunkManifest
from services.runtime.objects.protocol import ObjectStore

__all__ = ["ENGINE_ID", "Engine", "load_engine", "read_flatbuffer"]

ENGINE_ID = f"{LiteRTEngine.name}-{LiteRTEngine.version}"
"""The engine that `load_engine` takes, with its version: equal ids give equal bits on one kind of device."""


def load_engine(store: ObjectStore, trunk: TrunkManifest, threads: int = 1) -> Engine:
    """Loads the trunk's artefact into an engine with that many threads.

    The features' last bits may depend on the thread count; keep it the same wherever equal bits matter. Raises
    `CorruptObject` when the artefact's bytes are not those of the manifest, `NotFound` when they are gone.
    """
    if trunk.is_identity:
        return PixelEngine(trunk.image_size)
    engine = LiteRTEngine(read_flatbuffer(store, trunk), threads)
    if engine.feature_dim != trunk.feature_dim:
        raise CorruptObject(
            f"trunk {trunk.trunk_id} gives {engine.feature_dim} features, its manifest says {trunk.feature_dim}"
        )
    return HalfPrecisionEngine(engine) if trunk.feature_dtype == "float16" else engine


def read_flatbuffer(store: ObjectStore, trunk: TrunkManifest) -> bytes:
    """The trunk as LiteRT reads it.

    Raises `CorruptObject` where it has no such artefact, or its bytes are not those of the manifest, `NotFound` when
    they are gone.
    """
    artefact = trunk.artefacts.get(LiteRTEngine.name)
    if artefact is None:
        raise CorruptObject(f"trunk {trunk.trunk_id} has no artefact that runs here: {sorted(trunk.artefacts)}")
    return read_verified(store, artefact)
