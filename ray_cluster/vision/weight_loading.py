"""Pretrained weights into networks: every variable is assigned, or it is an error. Imports TensorFlow."""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from ray_cluster.vision import weight_files
from ray_cluster.vision.backbones import ARCHITECTURES, build_network, top_layer
from ray_cluster.vision.keras_h5 import CurrentWeights, LegacyWeights, read_contents
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.weight_files import WeightFile
from services.contracts.backbones import BACKBONES, BackboneName
from services.contracts.errors import WeightsUnusable
from services.contracts.jobs import Weights, WeightsUri

DOWNLOAD_TIMEOUT_S = 60
"""A download that gives no byte for this long has failed."""

CLASS_INDEX_URL = "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json"
CLASS_INDEX_MD5 = "c2c37ea517e94d9795004a39431a14cb"
"""Where `keras.applications` itself gets the labels from."""


@dataclass(frozen=True, slots=True)
class PretrainedNetwork:
    """A backbone with its weights loaded."""

    network: keras.Model
    top: Tail | None
    """The pretrained classifier, where the file has one; the network then ends in it."""


def locate(backbone: BackboneName, weights: Weights, folder: Path) -> WeightFile:
    """The weights as a local file; one that had to be copied is in `folder`. Raises `WeightsUnusable`."""
    if isinstance(weights, WeightsUri):
        return weight_files.fetch(weights, folder)
    if weights == "bundled":
        if BACKBONES[backbone].default_weights != "bundled":
            raise WeightsUnusable(f"no weights for {backbone} come with Rekindle: use 'imagenet', or a file's URI")
        path = weight_files.BUNDLED_WEIGHTS
    else:
        path = _download_imagenet(backbone)
    return WeightFile(path, weight_files.hash_file(path))


def load_network(backbone: BackboneName, image_size: int, path: Path) -> PretrainedNetwork:
    """Builds the backbone and loads the file into it, with its top where the file has one.

    Raises `WeightsUnusable` when the file is not a Keras weights file, or its layers are not the backbone's.
    """
    try:
        contents = read_contents(path)
    except ValueError as error:
        raise WeightsUnusable(f"the weights cannot be read as a Keras .h5 or .weights.h5 file: {error}") from error
    bare = build_network(backbone, image_size, None)
    classes = _class_count(backbone, bare, contents)
    network = bare if classes is None else build_network(backbone, image_size, classes)
    _assign(backbone, network, path, contents)
    top = None if classes is None else _tail(backbone, network)
    return PretrainedNetwork(network, top)


def imagenet_labels() -> bytes:
    """Keras' class index of ImageNet, from Keras' cache or the network. Raises `WeightsUnusable`."""
    return _download(CLASS_INDEX_URL, CLASS_INDEX_MD5, "ImageNet labels", "their labels").read_bytes()


def _download_imagenet(backbone: BackboneName) -> Path:
    """Keras' with-top file, from Keras' cache or the network."""
    architecture = ARCHITECTURES[backbone]
    if architecture.imagenet_url is None:
        raise WeightsUnusable(f"there are no ImageNet weights for {backbone}: use 'bundled', or a file's URI")
    what = f"ImageNet weights for {backbone}"
    return _download(architecture.imagenet_url, architecture.imagenet_hash, what, "the weights")


def _download(url: str, file_hash: str | None, what: str, short: str) -> Path:
    name = url.rpartition("/")[2]
    try:
        with _socket_timeout(DOWNLOAD_TIMEOUT_S):
            path = keras.utils.get_file(name, url, cache_subdir="models", file_hash=file_hash)
    except Exception as error:  # what get_file raises for a failed download is a bare Exception
        raise WeightsUnusable(
            f"Keras' {what} could not be downloaded from {url} ({error}): give {short} as a file's URI, or put the "
            f"file into Keras' cache on every node as ~/.keras/models/{name}",
            {"url": url},
        ) from error
    return Path(path)


@contextmanager
def _socket_timeout(timeout_s: float) -> Iterator[None]:
    """Keras downloads without a timeout. The default is the process's, so this belongs in a process of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_s)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# --- what a file holds ----------------------------------------------------------------------------------------------


def _class_count(backbone: BackboneName, bare: keras.Model, contents: LegacyWeights | CurrentWeights) -> int | None:
    """K of the file's classifier, or None where the file ends at the features."""
    if isinstance(contents, LegacyWeights):
        layer_count = sum(1 for layer in bare.layers if layer.weights)
        if len(contents.layers) == layer_count:
            return None
        if len(contents.layers) == layer_count + 1:
            return contents.layers[-1][0][-1]
        found = f"the file has {len(contents.layers)} layers with weights, not {layer_count} (or one more with its top)"
        raise _misfit(backbone, found)
    kind = ARCHITECTURES[backbone].top
    earlier = sum(1 for layer in bare.layers if type(layer).__name__.lower() == kind)
    kernel = contents.variables.get(f"layers/{kind}_{earlier}/vars/0" if earlier else f"layers/{kind}/vars/0")
    return kernel[-1] if kernel else None


# --- into the network -----------------------------------------------------------------------------------------------


def _float_variables(network: keras.Model) -> list[keras.Variable]:
    return [variable for variable in network.variables if variable.dtype.startswith("float")]


def _assign(backbone: BackboneName, network: keras.Model, path: Path, contents: LegacyWeights | CurrentWeights) -> None:
    """Loads the file strictly. Keras passes over what it does not find or need, so both ways are checked."""
    variables = _float_variables(network)
    if isinstance(contents, CurrentWeights) and len(contents.variables) != len(variables):
        raise _misfit(backbone, f"the file has {len(contents.variables)} variables, not {len(variables)}")
    for variable in variables:
        variable.assign(np.full(variable.shape, np.nan, variable.dtype))
    with tempfile.TemporaryDirectory() as folder:
        # Keras tells the formats apart by the name.
        link = Path(folder) / ("pretrained.h5" if isinstance(contents, LegacyWeights) else "pretrained.weights.h5")
        link.symlink_to(path.resolve())
        try:
            network.load_weights(link)
        except (ValueError, KeyError, OSError) as error:
            raise _misfit(backbone, str(error)) from error
    unassigned = [v.path for v in variables if not np.isfinite(v.numpy()).all()]
    if unassigned:
        raise _misfit(backbone, f"nothing, or numbers that are not finite, for {unassigned[0]}")


def _misfit(backbone: str, what: str) -> WeightsUnusable:
    return WeightsUnusable(f"the weights do not fit {backbone}: {what}", {"backbone": str(backbone)})


def _tail(backbone: BackboneName, network: keras.Model) -> Tail:
    kernel, bias = top_layer(backbone, network).get_weights()
    feature_dim = BACKBONES[backbone].feature_dim
    return Tail(np.ascontiguousarray(kernel.reshape(feature_dim, -1)), bias)
