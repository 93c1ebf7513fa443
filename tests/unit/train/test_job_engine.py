"""A job's engine is one for all its attempts and nodes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_cluster.train import dispatch, job_engine, tasks
from ray_cluster.train.capacity import CapacityWatch
from ray_cluster.train.context import AttemptContext
from ray_cluster.train.dispatch import Parallelism
from ray_cluster.train.job_engine import GPU_SHARE, PendingEngine, gpu_share
from ray_cluster.train.machines import ACCELERATOR_LABEL, ClusterView, NodeView
from ray_cluster.train.reporter import Reporter
from ray_cluster.train.work import Done, Span
from ray_cluster.vision.engines import choice
from services.contracts import names
from services.contracts.base import ObjectRef, utc_now
from services.contracts.errors import CorruptObject
from services.contracts.ids import JobId
from services.contracts.jobs import JobKind, JobRecord, Machine, Stage
from services.contracts.models import EngineChoice, TrunkManifest
from services.contracts.resources import Resources
from services.runtime.objects import ObjectStore, open_store
from tests.servers.training import make_manifest

JOB = JobId("job_1")
REF = ObjectRef(key="x", sha256="0" * 64, size_bytes=1)
TRUNK: TrunkManifest = make_manifest(1).trunk.model_copy(update={"artefacts": {"litert": REF, "onnx": REF}})
ANYWHERE, ON_L4 = Resources(), Resources(accelerator="L4")


class Cluster:
    """Nodes that a test says are there, and the task that chooses: on a node with a GPU the GPU, else as asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: ObjectStore) -> None:
        self.store = store
        self.gpus: list[float] = []
        """Of each node."""
        self.on_cpu = "onnx"
        self.asked: list[tuple[float, bool]] = []
        """Share of a GPU, and whether engines for it take part, of each task."""
        self.while_it_runs: Callable[[], object] = lambda: None
        self._options: dict[str, Any] = {}
        monkeypatch.delenv(choice.VARIABLE, raising=False)
        monkeypatch.setattr(tasks, "choose_engine_task", self)
        monkeypatch.setattr(dispatch, "run_one", self.run_one)

    def options(self, **options: Any) -> "Cluster":
        self._options = options
        return self

    def remote(self, bucket_uri: str, trunks: list[TrunkManifest], gpu: bool) -> EngineChoice:
        assert trunks == [TRUNK]
        self.asked.append((self._options["num_gpus"], gpu))
        return EngineChoice(engine="tensorflow_gpu" if gpu else self.on_cpu, device="d")

    def run_one(self, submit: object, begun: tuple[EngineChoice, object], *_: object) -> Done[EngineChoice]:
        self.while_it_runs()
        return Done(begun[0], Span(0, 1))

    def look(self) -> ClusterView:
        labels = {ACCELERATOR_LABEL: "L4"}
        return ClusterView([NodeView("ab", labels, 4, 4, total_gpus=count) for count in self.gpus])

    def engine(self, resources: Resources = ANYWHERE, attempt: int = 1) -> EngineChoice:
        """What an attempt of the job works with."""
        record = JobRecord(
            job_id=JOB, kind=JobKind.TRAIN, model_name="m", created_at=utc_now(), spec=None, source_uri=None
        )
        reporter = Reporter(self.store, JOB, attempt)
        capacity = CapacityWatch(resources, reporter, look=self.look)
        context = AttemptContext(self.store.uri, self.store, record, attempt, reporter, capacity, Parallelism(1))
        return PendingEngine(context, Stage.FEATURES).wait([TRUNK])


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    return Cluster(monkeypatch, open_store(tmp_path.as_uri()))


def test_later_attempts_keep_it_whatever_is_measured_or_asked_for_by_then(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster.engine().engine == "onnx"
    cluster.on_cpu = "litert"
    monkeypatch.setenv(choice.VARIABLE, "litert")
    assert cluster.engine(attempt=2).engine == "onnx"
    assert cluster.asked == [(0, False)]


def test_an_attempt_that_was_given_up_and_is_slower_takes_the_newer_ones(cluster: Cluster) -> None:
    def newer() -> None:
        cluster.while_it_runs = lambda: None
        cluster.on_cpu = "litert"
        assert cluster.engine(attempt=2).engine == "litert"

    cluster.while_it_runs = newer
    assert cluster.engine().engine == "litert"


def test_what_is_known_needs_no_task_and_is_kept_all_the_same(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(choice.VARIABLE, "onnx")
    assert cluster.engine().engine == "onnx"
    monkeypatch.delenv(choice.VARIABLE)
    assert cluster.engine(attempt=2).engine == "onnx"
    assert cluster.asked == []


@pytest.mark.parametrize(("node_id", "asked"), [("ab", []), ("other", [(0, False)])])
def test_what_was_measured_on_this_machine_needs_no_task_where_the_job_may_run_here(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, node_id: str, asked: list[tuple[float, bool]]
) -> None:
    cluster.gpus = [0]
    monkeypatch.setattr(job_engine, "here", lambda: Machine(node_id=node_id, instance_type=None, market=None))
    monkeypatch.setattr(choice, "standing", lambda *_: EngineChoice(engine="litert", device="d"))
    assert cluster.engine().engine == ("onnx" if asked else "litert")
    assert cluster.asked == asked


def test_a_job_that_asks_for_an_accelerator_runs_its_trunk_on_it(cluster: Cluster) -> None:
    cluster.gpus = [0, 1]
    chosen = cluster.engine(ON_L4)
    assert (chosen.engine, gpu_share(chosen)) == ("tensorflow_gpu", GPU_SHARE)
    assert cluster.asked == [(GPU_SHARE, True)]


@pytest.mark.parametrize(("resources", "gpus"), [(ANYWHERE, [1.0]), (ON_L4, [0.0])])
def test_other_jobs_and_nodes_without_a_gpu_to_reserve_do_without(
    cluster: Cluster, resources: Resources, gpus: list[float]
) -> None:
    cluster.gpus = gpus
    chosen = cluster.engine(resources)
    assert (chosen.engine, gpu_share(chosen)) == ("onnx", 0)
    assert cluster.asked == [(0, False)]


def test_a_node_that_came_for_the_task_shows_its_gpu(cluster: Cluster) -> None:
    cluster.while_it_runs = lambda: cluster.gpus.append(1)
    assert cluster.engine(ON_L4).engine == "tensorflow_gpu"
    assert cluster.asked == [(0, False), (GPU_SHARE, True)]


@pytest.mark.parametrize("damage", [b"{", b'{"engine": "of another release"}'])
def test_a_damaged_record_is_not_guessed(cluster: Cluster, damage: bytes) -> None:
    cluster.store.put(names.job_engine(JOB), damage)
    with pytest.raises(CorruptObject, match=r"engine\.json"):
        cluster.engine()
