"""Weight files into networks: right, or refused with a reason."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

from ray_cluster.vision.backbones import ARCHITECTURES, build_network
from ray_cluster.vision.weight_loading import load_network, locate
from services.contracts.backbones import BackboneName
from services.contracts.errors import WeightsUnusable

TINY = BackboneName.REKINDLE_TINY


def save(network: keras.Model, path: Path, file_format: str) -> None:
    if file_format == "current":
        network.save_weights(path.with_suffix(".weights.h5"))
        path.with_suffix(".weights.h5").rename(path)
    elif file_format == "whole model":
        network.save(path)
    else:
        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, network)


def weights_of(network: keras.Model) -> list[np.ndarray]:
    return [np.asarray(value) for value in network.get_weights()]


@pytest.mark.parametrize("backbone", [TINY, BackboneName.MOBILENET])
@pytest.mark.parametrize("classes", [None, 5])
@pytest.mark.parametrize("file_format", ["legacy", "whole model", "current"])
def test_every_format_with_and_without_top(
    tmp_path: Path, backbone: BackboneName, classes: int | None, file_format: str
) -> None:
    saved = build_network(backbone, 32, classes)
    save(saved, tmp_path / "any_name.h5", file_format)
    loaded = load_network(backbone, 64, tmp_path / "any_name.h5")
    for expected, actual in zip(weights_of(saved), weights_of(loaded.network), strict=True):
        assert np.array_equal(expected, actual)
    assert (loaded.top is not None) == (classes is not None)
    if loaded.top is not None:
        kernel, bias = weights_of(saved)[-2:]
        assert np.array_equal(loaded.top.kernel_DK.ravel(), kernel.ravel())
        assert np.array_equal(loaded.top.bias_K, bias)


@pytest.mark.parametrize("file_format", ["legacy", "current"])
def test_another_backbones_weights_are_refused(tmp_path: Path, file_format: str) -> None:
    save(build_network(BackboneName.MOBILENET, 32, None), tmp_path / "w.h5", file_format)
    with pytest.raises(WeightsUnusable, match="do not fit rekindle_tiny"):
        load_network(TINY, 64, tmp_path / "w.h5")


@pytest.mark.parametrize("file_format", ["legacy", "current"])
def test_one_array_of_another_shape_is_refused(tmp_path: Path, file_format: str) -> None:
    path = tmp_path / "w.h5"
    save(build_network(TINY, 32, None), path, file_format)
    with h5py.File(path, "r+") as file:
        replace(file, a_kernel(file), np.zeros((3, 3, 3, 25), np.float32))
    with pytest.raises(WeightsUnusable, match="do not fit"):
        load_network(TINY, 64, path)


def test_a_missing_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    save(build_network(TINY, 32, None), path, "current")
    with h5py.File(path, "r+") as file:
        del file[a_kernel(file)]
    with pytest.raises(WeightsUnusable, match="variables"):
        load_network(TINY, 64, path)


def test_an_array_that_moved_is_refused(tmp_path: Path) -> None:
    """As many arrays as there should be, and yet one of the network's own is not among them."""
    path = tmp_path / "w.h5"
    save(build_network(TINY, 32, None), path, "current")
    with h5py.File(path, "r+") as file:
        file.move(a_kernel(file), "layers/somewhere_else/vars/0")
    with pytest.raises(WeightsUnusable, match="do not fit"):
        load_network(TINY, 64, path)


@pytest.mark.parametrize("file_format", ["legacy", "current"])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, file_format: str) -> None:
    path = tmp_path / "w.h5"
    save(build_network(TINY, 32, None), path, file_format)
    with h5py.File(path, "r+") as file:
        kernel = a_kernel(file)
        values = file[kernel][()]
        values[0, 0, 0, 0] = np.inf
        replace(file, kernel, values)
    with pytest.raises(WeightsUnusable, match="not finite"):
        load_network(TINY, 64, path)


@pytest.mark.parametrize("content", [b"", b"not hdf5", b"\x89HDF\r\n\x1a\n" + b"\0" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.h5").write_bytes(content)
    with pytest.raises(WeightsUnusable, match="cannot be read as a Keras"):
        load_network(TINY, 64, tmp_path / "w.h5")


def test_an_hdf5_file_without_layers_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["numbers"] = np.zeros(3)
    with pytest.raises(WeightsUnusable, match="no layers"):
        load_network(TINY, 64, tmp_path / "w.h5")


def test_no_network_is_said_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "http://127.0.0.1:1/mobilenet_that_nobody_has.h5"
    offline = dataclasses.replace(ARCHITECTURES[BackboneName.MOBILENET], imagenet_url=nowhere)
    monkeypatch.setitem(ARCHITECTURES, BackboneName.MOBILENET, offline)
    with pytest.raises(WeightsUnusable, match=r"could not be downloaded .* file's URI"):
        locate(BackboneName.MOBILENET, "imagenet", tmp_path)


def test_weights_that_a_backbone_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnusable, match="come with Rekindle"):
        locate(BackboneName.MOBILENET, "bundled", tmp_path)
    with pytest.raises(WeightsUnusable, match="no ImageNet weights"):
        locate(TINY, "imagenet", tmp_path)


def a_kernel(file: h5py.File) -> str:
    """The path of the first 3x3 kernel across channels: the network's first layer."""
    found: list[str] = []

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape == (3, 3, 3, 24):
            found.append(name)

    file.visititems(visit)
    return found[0]


def replace(file: h5py.File, path: str, values: np.ndarray) -> None:
    del file[path]
    file[path] = values


def test_imagenet_labels_come_from_keras_cache(tmp_path: Path, data_dir: Path) -> None:
    cache = tmp_path / "models"
    cache.mkdir()
    index = data_dir / "weights" / "imagenet_class_index.json"
    shutil.copy(index, cache)
    code = "from ray_cluster.vision.weight_loading import imagenet_labels; print(len(imagenet_labels()))"
    # Keras looks for its home when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split()[-1:] == [str(index.stat().st_size)], done.stderr
