"""What tests that strike a fit start from: a small cluster, and what an undisturbed fit ends with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.fits import LONG, recoveries
from tests.chaos.runner.jobs import draw
from tests.cluster.attempts import Attempts
from tests.servers.ray_nodes import RayNodes, ray_nodes


@pytest.fixture(scope="package")
def cluster() -> Iterator[RayNodes]:
    """Two spot nodes; a fit gets a standby at once, and Ray Train where a test asks for it. A test that takes a node
    away puts another in its place."""
    with ray_nodes(spots=2, env={"REKINDLE_STANDBY_AFTER_S": "0", "REKINDLE_RAY_TRAIN_AFTER_S": "3600"}) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def bucket_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all modules: trunk and features are computed once."""
    return tmp_path_factory.mktemp("bucket").as_uri()


@pytest.fixture(scope="module")
def attempts(cluster: RayNodes, bucket_uri: str) -> Attempts:
    return Attempts(cluster, bucket_uri)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("images"), 0).images


@pytest.fixture(scope="session")
def references() -> dict[Path, str]:
    """By images: the SHA-256 of an undisturbed fit's weights, which no cluster changes."""
    return {}


@pytest.fixture(scope="module")
def undisturbed(attempts: Attempts, images: Path, references: dict[Path, str]) -> str:
    """The SHA-256 of the weights that nothing happened to."""
    if images not in references:
        job = attempts.accept(images, "undisturbed", **LONG)
        assert attempts.run(job) == 0, attempts.log(job)
        assert not recoveries(attempts, job)
        references[images] = attempts.model(job).tail_sha256
    return references[images]
