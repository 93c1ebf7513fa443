"""What several modules start from: attempts on one cluster and in one bucket, images, and a trained model of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.contracts.ids import JobId
from tests.cluster.attempts import Attempts
from tests.servers.ray_local import LocalRay, ray_local

__all__ = ["ray_local"]


@pytest.fixture(scope="package")
def attempts(ray_local: LocalRay, tmp_path_factory: pytest.TempPathFactory) -> Attempts:
    return Attempts(ray_local, tmp_path_factory.mktemp("bucket").as_uri())


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in three tints, which any backbone tells apart."""
    folder = tmp_path_factory.mktemp("drawings")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label, tint in (("blue", (40, 60, 200)), ("green", (40, 200, 60)), ("red", (200, 60, 40))):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(tint, 40, (80, 80, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number:03d}.png")
    (folder / "train" / "stray.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="package")
def undisturbed(attempts: Attempts, drawings: Path) -> JobId:
    """A job that nothing happened to, run as a Ray job."""
    job = attempts.accept(drawings, "drawings", seed=3)
    status = attempts.submit(job)
    assert status == "SUCCEEDED", attempts.job_logs(job)
    return job
