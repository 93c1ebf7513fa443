"""I7: a job that waits for machines says so and why, and goes on to the same weights when there is one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_cluster.vision.drawn import draw_dataset
from services.contracts.ids import JobId
from services.contracts.jobs import CapacityWait, JobEventType, ProgressRecord, Stage
from tests.cluster.attempts import ATTEMPT_TIMEOUT_S, Attempts, wait_until
from tests.servers.ray_nodes import RayNodes, Role, ray_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

ON_DEMAND_AFTER_S = 12


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    """Without a spot node, and with one that is not."""
    with ray_nodes(spots=0) as cluster:
        cluster.add_node(market="on-demand")
        yield cluster


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw_dataset(folder, train_per_class=10, test_per_class=2)
    return folder


@pytest.fixture(scope="module")
def attempts(cluster: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Attempts:
    return Attempts(cluster, tmp_path_factory.mktemp("bucket").as_uri())


@pytest.fixture(scope="module")
def undisturbed(attempts: Attempts, images: Path) -> str:
    """The SHA-256 of the weights of a run that takes any node."""
    job = attempts.accept(images, "undisturbed")
    assert attempts.run(job) == 0, attempts.log(job)
    assert waits(attempts, job) == []
    return attempts.model(job).tail_sha256


def waits(attempts: Attempts, job: JobId) -> list[tuple[ProgressRecord, CapacityWait]]:
    told = [record for record in attempts.records(job) if record.type is JobEventType.CAPACITY]
    return [(record, CapacityWait.model_validate(record.data)) for record in told]


def test_a_job_for_spot_nodes_waits_for_one_and_says_so(
    cluster: RayNodes, attempts: Attempts, images: Path, undisturbed: str
) -> None:
    """Its features are there already: what waits is its trainer, beside an idle one on the wrong node."""
    job = attempts.accept(images, "patient", resources={"market": "spot"})
    with attempts.begun(job) as process:
        wait_until(lambda: waits(attempts, job))
        record, wait = waits(attempts, job)[0]
        assert record.stage is Stage.FIT
        assert record.message == wait.sentence
        assert wait.asked == "0.01 CPU on a spot node"
        assert wait.message == "no living node has the label ray.io/market-type=spot; there are on-demand"
        assert wait.on_demand_at is None
        assert not wait.over
        spot = cluster.add_node(market="spot")
        assert process.wait(ATTEMPT_TIMEOUT_S) == 0, attempts.log(job)
    assert [each.over for _, each in waits(attempts, job)] == [False, True]
    assert attempts.model(job).tail_sha256 == undisturbed
    assert cluster.processes(Role.TRAINER, spot) != []
    cluster.kill_node(spot)


def test_a_job_for_spot_nodes_takes_others_when_its_patience_ends(
    cluster: RayNodes, images: Path, undisturbed: str, tmp_path: Path
) -> None:
    """In a bucket of its own: its first tasks wait already."""
    attempts = Attempts(cluster, tmp_path.as_uri())
    resources = {"market": "spot", "on_demand_after_s": ON_DEMAND_AFTER_S}
    job = attempts.accept(images, "impatient", resources=resources)
    wait_until(lambda: "spot" not in cluster.market_types().values())
    assert attempts.run(job) == 0, attempts.log(job)
    told = waits(attempts, job)
    assert [(record.stage, each.over) for record, each in told] == [(Stage.PREFLIGHT, False), (Stage.PREFLIGHT, True)]
    began, ended = told
    assert began[1].on_demand_at is not None
    assert (began[1].on_demand_at - began[1].since).total_seconds() == ON_DEMAND_AFTER_S
    assert ended[0].at >= began[1].on_demand_at
    assert attempts.model(job).tail_sha256 == undisturbed
