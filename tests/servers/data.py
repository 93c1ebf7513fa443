"""Real images and pretrained weights, which live beside the project and are never copied into it."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def shared_data() -> Path:
    """The folder with `datasets/` and `weights/`: REKINDLE_TEST_DATA, or `../shared/data` beside the checkout."""
    return Path(os.environ.get("REKINDLE_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Fails, and does not skip, where the data is missing: a test run without it proves less than it seems to."""
    folder = shared_data()
    if not (folder / "datasets").is_dir():
        pytest.fail(f"no real images at {folder}: set REKINDLE_TEST_DATA to a folder with datasets/ and weights/")
    return folder


@pytest.fixture(scope="session")
def mobilenet_weights(data_dir: Path) -> Path:
    """MobileNetV2's ImageNet weights with top, 224 px."""
    return data_dir / "weights" / "mobilenet_v2_1.0_224" / "mobilenet_v2_1.0_224_from_int8.h5"
