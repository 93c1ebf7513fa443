"""Which engine runs a trunk: known, asked for, or measured once and kept."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from ray_cluster.vision.engines import choice, kinds
from ray_cluster.vision.engines.kinds import KINDS, LITERT, ONNX, TENSORFLOW, TENSORFLOW_GPU
from ray_cluster.vision.engines.protocol import Engine
from services.contracts.base import ObjectRef
from services.contracts.errors import CorruptObject, InternalError
from services.contracts.models import EngineChoice, TrunkManifest
from services.runtime.objects import ObjectStore, open_store
from tests.servers.training import make_manifest

GPU = "NVIDIA L4"


def trunk_with(*artefacts: str, cut: str = "pooled") -> TrunkManifest:
    ref = ObjectRef(key="x", sha256="0" * 64, size_bytes=1)
    return make_manifest(1).trunk.model_copy(update={"artefacts": dict.fromkeys(artefacts, ref), "cut": cut})


ALL = trunk_with("litert", "onnx", "tensorflow")
OLD = trunk_with("litert")


class Measured:
    """Stands for loading and measuring engines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rates: Mapping[str, float]) -> None:
        self.rates = dict(rates)
        self.runs = 0
        monkeypatch.setattr(choice, "_load", lambda store, trunk, found: found)
        monkeypatch.setattr(choice, "measure", self.measure)

    def measure(self, found: list[str], image_size: int) -> dict[str, float]:
        self.runs += 1
        return {name: self.rates[name] for name in found}


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path.as_uri())


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(choice.VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("rates", "engine"),
    [
        ({LITERT: 100.0, ONNX: 119.0}, LITERT),
        ({LITERT: 100.0, ONNX: 121.0}, ONNX),
        ({LITERT: 100.0, ONNX: 50.0, TENSORFLOW_GPU: 900.0}, TENSORFLOW_GPU),
        ({ONNX: 100.0, TENSORFLOW_GPU: 115.0}, ONNX),
    ],
)
def test_litert_stays_unless_another_is_faster_by_more_than_noise(rates: dict[str, float], engine: str) -> None:
    assert choice.fastest(rates) == engine


def test_nothing_is_measured_where_the_answer_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.known([OLD]) == EngineChoice(engine=LITERT)
    assert choice.known([ALL, OLD]) == EngineChoice(engine=LITERT), "one engine for all"
    assert choice.known([trunk_with("tensorflow")]) == EngineChoice(engine=TENSORFLOW)
    assert choice.known([trunk_with(cut="input")]) == EngineChoice(engine=LITERT)
    assert choice.known([ALL]) is None
    monkeypatch.setenv(choice.VARIABLE, TENSORFLOW)
    assert choice.known([ALL]) == EngineChoice(engine=TENSORFLOW)


def test_an_engine_that_is_asked_for_and_cannot_run_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(choice.VARIABLE, ONNX)
    assert choice.contenders([OLD], gpu=False) == [LITERT]
    assert "onnx cannot run trunk" in caplog.text
    monkeypatch.setenv(choice.VARIABLE, "onyx")
    with pytest.raises(InternalError, match="'onyx'"):
        choice.contenders([ALL], gpu=False)
    with pytest.raises(CorruptObject, match="no engine here"):
        choice.contenders([trunk_with("openvino")], gpu=False)


def test_it_is_measured_once_and_then_agreed_on(monkeypatch: pytest.MonkeyPatch, store: ObjectStore) -> None:
    measured = Measured(monkeypatch, {LITERT: 100, ONNX: 150})
    assert choice.standing(store, [ALL]) is None
    first = choice.choose(store, [ALL])
    assert choice.standing(store, [ALL]) == first
    assert (first.engine, first.images_per_second) == (ONNX, {LITERT: 100, ONNX: 150})
    measured.rates = {LITERT: 150, ONNX: 100}
    assert choice.choose(store, [ALL]) == first
    assert measured.runs == 1
    monkeypatch.setattr(choice, "cpu_name", lambda: "cpu:another")
    assert choice.choose(store, [ALL]).engine == LITERT


def test_whoever_measured_at_the_same_time_and_wrote_first_counts(
    monkeypatch: pytest.MonkeyPatch, store: ObjectStore
) -> None:
    """Also where what stands is damaged: then the next one counts."""
    measured = Measured(monkeypatch, {LITERT: 100, ONNX: 150})
    theirs: list[EngineChoice] = []

    def beaten(found: list[str], image_size: int) -> dict[str, float]:
        if not theirs:
            theirs.append(EngineChoice(engine=ONNX))  # so that the nested call measures by itself
            theirs[0] = choice.choose(store, [ALL])
            measured.rates = {LITERT: 150, ONNX: 100}
        return measured.measure(found, image_size)

    monkeypatch.setattr(choice, "measure", beaten)
    assert choice.choose(store, [ALL]) == theirs[0]
    assert (measured.runs, theirs[0].engine) == (2, ONNX)
    (kept,) = store.list("trunks/")
    store.put(kept.key, b"{")
    assert choice.choose(store, [ALL]).engine == LITERT
    assert choice.choose(store, [ALL]).engine == LITERT
    assert measured.runs == 3


def test_a_gpu_takes_part_where_it_is_seen(monkeypatch: pytest.MonkeyPatch, store: ObjectStore) -> None:
    measured = Measured(monkeypatch, {LITERT: 100, ONNX: 150, TENSORFLOW_GPU: 2000})
    monkeypatch.setattr(choice, "gpu_name", lambda: None)
    assert choice.choose(store, [ALL], gpu=True).engine == ONNX
    monkeypatch.setattr(choice, "gpu_name", lambda: GPU)
    chosen = choice.choose(store, [ALL], gpu=True)
    assert (chosen.engine, chosen.device, measured.runs) == (TENSORFLOW_GPU, GPU, 2)
    assert kinds.engine_id(chosen).endswith(" on NVIDIA L4")
    assert choice.choose(store, [ALL]).engine == ONNX, "a node without one goes on with its own"


class Slow:
    """An engine whose every image takes as long as the clock is moved by."""

    version, feature_dim = "1", 1

    def __init__(self, name: str, batch_size: int) -> None:
        self.name, self.batch_size = name, batch_size
        self.batches: list[int] = []

    def features(self, images_BHWC: np.ndarray) -> np.ndarray:
        self.batches.append(len(images_BHWC))
        return np.zeros((len(images_BHWC), 1), np.float32)


def test_engines_are_measured_in_turn_with_the_batches_that_they_want() -> None:
    engines: dict[str, Engine] = {LITERT: Slow(LITERT, 1), TENSORFLOW_GPU: Slow(TENSORFLOW_GPU, 32)}
    rates = choice.measure(engines, 8)
    assert list(rates) == list(engines)
    assert all(rate > 0 for rate in rates.values())
    slow, gpu = engines.values()
    assert isinstance(slow, Slow)
    assert isinstance(gpu, Slow)
    assert (set(slow.batches), set(gpu.batches)) == ({1}, {32})
    assert len(slow.batches) == len(gpu.batches) >= 4


def test_the_names_of_engines_are_those_of_the_contract() -> None:
    described = EngineChoice.model_fields["engine"].description
    assert described is not None
    assert all(f"`{name}`" in described for name in KINDS)
