"""Engines run trunks. Which one does is chosen by `choice`; `load_engine` loads it."""

from ray_cluster.vision.engines.cuts import HalfPrecisionEngine, PixelEngine
from ray_cluster.vision.engines.kinds import KINDS, LITERT, ONNX, EngineKind, engine_id
from ray_cluster.vision.engines.litert import LiteRTEngine
from ray_cluster.vision.engines.protocol import Engine
from ray_cluster.vision.verified import read_verified
from services.contracts.errors import CorruptObject, InternalError
from services.contracts.models import TrunkManifest
from services.runtime.objects.protocol import ObjectStore

__all__ = ["KINDS", "LITERT", "Engine", "engine_id", "load_engine", "read_flatbuffer"]


def load_engine(store: ObjectStore, trunk: TrunkManifest, name: str = LITERT, threads: int = 1) -> Engine:
    """Loads the trunk's artefact into the engine of that name (a key of `KINDS`), with that many threads.

    The features' last bits depend on the engine, and may depend on the thread count; keep both the same wherever equal
    bits matter. A trunk whose features are the pixels needs none of them. Raises `CorruptObject` when the trunk has no
    artefact for the engine, or its bytes are not those of the manifest, `NotFound` when they are gone, `InternalError`
    when the engine does not run here.
    """
    if trunk.is_identity:
        return PixelEngine(trunk.image_size)
    kind = KINDS.get(name)
    if kind is None:
        raise InternalError(f"there is no engine {name!r}: there are {', '.join(KINDS)}")
    artefact = trunk.artefacts.get(kind.artefact)
    if artefact is None:
        raise CorruptObject(f"trunk {trunk.trunk_id} has no artefact for {name}: {sorted(trunk.artefacts)}")
    engine = _open(name, kind, read_verified(store, artefact), trunk.image_size, threads)
    if engine.feature_dim != trunk.feature_dim:
        raise CorruptObject(
            f"trunk {trunk.trunk_id} gives {engine.feature_dim} features, its manifest says {trunk.feature_dim}"
        )
    return HalfPrecisionEngine(engine) if trunk.feature_dtype == "float16" else engine


def _open(name: str, kind: EngineKind, data: bytes, image_size: int, threads: int) -> Engine:
    """The others' libraries are loaded when they are needed: each takes longer than LiteRT's, and TensorFlow's
    seconds."""
    if name == LITERT:
        return LiteRTEngine(data, threads)
    if name == ONNX:
        from ray_cluster.vision.engines.onnx_runtime import OnnxEngine  # noqa: PLC0415

        return OnnxEngine(data, threads)
    from ray_cluster.vision.engines.tensorflow_graph import TensorFlowEngine, use_threads  # noqa: PLC0415

    use_threads(threads)
    return TensorFlowEngine(data, image_size, "GPU" if kind.on_gpu else "CPU")


def read_flatbuffer(store: ObjectStore, trunk: TrunkManifest) -> bytes:
    """The trunk as LiteRT reads it.

    Raises `CorruptObject` where it has no such artefact, or its bytes are not those of the manifest, `NotFound` when
    they are gone.
    """
    artefact = trunk.artefacts.get(LITERT)
    if artefact is None:
        raise CorruptObject(f"trunk {trunk.trunk_id} has no artefact that runs here: {sorted(trunk.artefacts)}")
    return read_verified(store, artefact)
