"""Which engine runs a trunk: the fastest here, found by a short measurement that is kept beside the trunk.

`REKINDLE_TRUNK_ENGINE` of the cluster's environment names one instead. Array axes: B batch, H height, W width, C
channel.
"""

import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import ValidationError

from ray_cluster.vision.devices import cpu_name, gpu_name
from ray_cluster.vision.engines import load_engine
from ray_cluster.vision.engines.kinds import KINDS, engine_id, runnable
from ray_cluster.vision.engines.protocol import Engine
from ray_cluster.vision.verified import put_or_adopt
from services.contracts import names
from services.contracts.errors import CorruptObject, InternalError, NotFound
from services.contracts.models import EngineChoice, TrunkManifest
from services.runtime.objects.protocol import ObjectStore

VARIABLE = "REKINDLE_TRUNK_ENGINE"
AUTO = "auto"
MARGIN = 1.2
"""How many times as fast as the first of `KINDS` another one must be. Between two that are nearly as fast, noise would
decide, and the same job would get other bits in another bucket."""
LOOK_S = 0.12
"""Of each engine; one image that takes longer is looked at `_LEAST_ROUNDS` times."""
_LEAST_ROUNDS = 3

_log = logging.getLogger(__name__)


def contenders(trunks: Sequence[TrunkManifest], *, gpu: bool) -> list[str]:
    """The engines to choose from; one where the answer is known.

    Raises `CorruptObject` when nothing can run all of these trunks, `InternalError` when `REKINDLE_TRUNK_ENGINE` names
    no engine.
    """
    found = runnable(trunks, gpu=gpu)
    if all(trunk.is_identity for trunk in trunks):
        return found[:1]  # nothing runs
    if not found:
        raise CorruptObject(f"no engine here can run trunk {trunks[0].trunk_id}: {sorted(trunks[0].artefacts)}")
    wanted = os.environ.get(VARIABLE) or AUTO
    if wanted in found:
        return [wanted]
    if wanted != AUTO:
        if wanted not in KINDS:
            raise InternalError(f"{VARIABLE} is {wanted!r}: set it to {AUTO}, {', '.join(KINDS)}")
        _log.warning("%s cannot run trunk %s here; choosing among %s", wanted, trunks[0].trunk_id, ", ".join(found))
    return [name for name in found if not KINDS[name].starts_in_seconds] or found


def known(trunks: Sequence[TrunkManifest]) -> EngineChoice | None:
    """The engine on machines without a GPU, where nothing has to be measured for that. Raises like `contenders`."""
    found = contenders(trunks, gpu=False)
    return EngineChoice(engine=found[0]) if len(found) == 1 else None


def standing(store: ObjectStore, trunks: Sequence[TrunkManifest]) -> EngineChoice | None:
    """What `choose` would say on this machine without its GPU, where that was measured before. Raises like
    `contenders`."""
    found = contenders(trunks, gpu=False)
    return _among(_read(store, _key(trunks, found, cpu_name())), found)


def choose(store: ObjectStore, trunks: Sequence[TrunkManifest], *, gpu: bool = False) -> EngineChoice:
    """The engine that is to run all of these trunks on devices like this machine's; `gpu`: on its GPU, if that pays.

    Measured on the last of them that is one at all, on which a version will be, unless somebody has on such a device
    with these libraries; whoever wrote it down first counts. Raises like `contenders`.
    """
    seen = gpu_name() if gpu else None
    device = seen or cpu_name()
    found = contenders(trunks, gpu=seen is not None)
    if len(found) == 1:
        return EngineChoice(engine=found[0], device=device)
    key = _key(trunks, found, device)
    before = _read(store, key)
    if (usable := _among(before, found)) is not None:
        return usable
    trunk = _measured(trunks)
    rates = measure(_load(store, trunk, found), trunk.image_size)
    choice = EngineChoice(engine=fastest(rates), device=device, images_per_second=rates)
    _log.info("trunk %s runs on %s here: %s", trunk.trunk_id, choice.engine, rates)
    if before is not None:  # of no use here, and perhaps elsewhere
        return choice

    data = choice.model_dump_json().encode()
    return put_or_adopt(store, key, data, lambda: _among(_read(store, key), found)) or choice


def fastest(rates: Mapping[str, float]) -> str:
    """The engine with the greatest rate; the first of `KINDS` unless that is beaten by `MARGIN`."""
    first = next(name for name in KINDS if name in rates)
    best = max(rates, key=lambda name: rates[name])
    return best if rates[best] >= MARGIN * rates[first] else first


def measure(engines: Mapping[str, Engine], image_size: int) -> dict[str, float]:
    """Images per second of each engine on this whole machine: as many of them as it has cores, or its GPU.

    They take turns, and the shortest time counts, on a CPU the processor's own: what else the machine does meanwhile
    is to make no difference.
    """
    largest = max(engine.batch_size for engine in engines.values())
    images_BHWC = np.random.default_rng(0).integers(0, 256, (largest, image_size, image_size, 3), np.uint8)
    for engine in engines.values():
        engine.features(images_BHWC[: engine.batch_size])  # the first call takes longer
    shortest_s = dict.fromkeys(engines, float("inf"))
    began_s = time.perf_counter()
    for turn in itertools.count():
        if turn >= _LEAST_ROUNDS and time.perf_counter() - began_s > LOOK_S * len(engines):
            break
        for name, engine in engines.items():
            clock = time.perf_counter if KINDS[name].on_gpu else time.process_time
            before_s = clock()
            engine.features(images_BHWC[: engine.batch_size])
            shortest_s[name] = min(shortest_s[name], clock() - before_s)
    cores = os.cpu_count() or 1
    return {
        name: round(engine.batch_size / shortest_s[name] * (1 if KINDS[name].on_gpu else cores), 1)
        for name, engine in engines.items()
    }


def _among(known: EngineChoice | None, found: Sequence[str]) -> EngineChoice | None:
    """What is written down, where it is one of the engines to choose from."""
    return known if known is not None and known.engine in found else None


def _measured(trunks: Sequence[TrunkManifest]) -> TrunkManifest:
    return [each for each in trunks if not each.is_identity][-1]


def _key(trunks: Sequence[TrunkManifest], found: Sequence[str], device: str) -> str:
    """Where the choice among these engines on such a device is kept."""
    ids = [engine_id(EngineChoice(engine=name, device=device)) for name in found]
    kind = hashlib.sha256(json.dumps([device, ids]).encode()).hexdigest()[:16]
    return names.trunk_engine(_measured(trunks).trunk_id, kind)


def _load(store: ObjectStore, trunk: TrunkManifest, found: Sequence[str]) -> dict[str, Engine]:
    """Those that can be loaded, on one thread each. Raises what the last one raised where none can."""
    loaded: dict[str, Engine] = {}
    for name in found:
        try:
            loaded[name] = load_engine(store, trunk, name)
        except (CorruptObject, NotFound, InternalError) as error:
            if not loaded and name == found[-1]:
                raise
            _log.warning("%s does not take part: %s", name, error)
    return loaded


def _read(store: ObjectStore, key: str) -> EngineChoice | None:
    try:
        return EngineChoice.model_validate_json(store.get(key))
    except (NotFound, ValidationError):
        return None
