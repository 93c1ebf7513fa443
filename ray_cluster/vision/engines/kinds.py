"""The engines that there are, and which of them can run a trunk. Loads none of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from services.contracts.models import EngineChoice, TrunkManifest

LITERT = "litert"
ONNX = "onnx"
TENSORFLOW = "tensorflow"
TENSORFLOW_GPU = "tensorflow_gpu"


@dataclass(frozen=True, slots=True)
class EngineKind:
    """What is known of an engine before it is loaded."""

    artefact: str
    """The form in which it takes a trunk: a key of `TrunkManifest.artefacts`."""
    packages: tuple[str, ...]
    """Its library: distributions of which a machine has one, all of the same version in a cluster."""
    on_gpu: bool = False
    starts_in_seconds: bool = False
    """Loading its library takes longer than a short job's features: it has to be asked for, or to have a GPU."""


_TENSORFLOW_PACKAGES = ("tensorflow-cpu", "tensorflow")
KINDS = {
    LITERT: EngineKind("litert", ("ai-edge-litert",)),
    ONNX: EngineKind("onnx", ("onnxruntime",)),
    TENSORFLOW: EngineKind("tensorflow", _TENSORFLOW_PACKAGES, starts_in_seconds=True),
    TENSORFLOW_GPU: EngineKind("tensorflow", _TENSORFLOW_PACKAGES, on_gpu=True),
}
"""By name. The first is the one that others have to beat."""


@cache
def library_version(name: str) -> str | None:
    """Of an engine's library; None where it is not installed."""
    for package in KINDS[name].packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def runnable(trunks: Iterable[TrunkManifest], *, gpu: bool) -> list[str]:
    """The engines that can run all of these trunks, in the order of `KINDS`; `gpu` says whether there is one."""
    artefacts = [set(trunk.artefacts) for trunk in trunks if not trunk.is_identity]
    return [
        name
        for name, kind in KINDS.items()
        if library_version(name) and (gpu or not kind.on_gpu) and all(kind.artefact in each for each in artefacts)
    ]


def engine_id(choice: EngineChoice) -> str:
    """Engine and version, of the libraries that are installed here: equal ids give equal bits on one kind of device.

    Features that a GPU computed are told apart by its name: they are in a cache that machines without one read, too.
    """
    version_here = library_version(choice.engine) or "none"
    return f"{choice.engine}-{_version(version_here, choice.device if KINDS[choice.engine].on_gpu else None)}"


def gpu_version(library: str, gpu_name: str) -> str:
    """`Engine.version` of an engine on a GPU."""
    return _version(library, gpu_name)


def _version(library: str, gpu_name: str | None) -> str:
    return library if gpu_name is None else f"{library} on {gpu_name}"
