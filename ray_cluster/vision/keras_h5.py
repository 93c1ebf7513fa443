"""What is in a Keras weights file, by content and not by name, since people rename files.

Keras has two formats. The legacy one (`.h5`: Keras 1 and 2, and everything that `keras.applications` downloads) lists
layers in order; the current one (`.weights.h5`) names variables by the path of their layer.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LegacyWeights:
    """A legacy weights file, or a whole model saved in the legacy format."""

    layers: list[list[Shape]]
    """The shapes of each layer's arrays, for the layers that have any, in the file's order."""


@dataclass(frozen=True, slots=True)
class CurrentWeights:
    """A `.weights.h5` file."""

    variables: dict[str, Shape]
    """Shapes of the layers' floating-point variables by path, e.g. `layers/dense/vars/0`."""


def read_contents(path: Path) -> LegacyWeights | CurrentWeights:
    """Raises `ValueError` when the file is neither."""
    try:
        with h5py.File(path) as file:
            if _names(file, "layer_names"):
                return _read_legacy(file)
            if isinstance(whole_model := file.get("model_weights"), h5py.Group):
                return _read_legacy(whole_model)
            if isinstance(layers := file.get("layers"), h5py.Group):
                return _read_current(layers)
    except (OSError, RuntimeError, KeyError, UnicodeError) as error:
        raise ValueError(f"it is not a readable HDF5 file: {error}") from error
    raise ValueError("it has no layers")


def _read_legacy(root: h5py.Group) -> LegacyWeights:
    layers = [[_shape(layer[name]) for name in _names(layer, "weight_names")] for layer in _groups(root)]
    return LegacyWeights([shapes for shapes in layers if shapes])


def _groups(root: h5py.Group) -> list[h5py.Group]:
    groups = [root[name] for name in _names(root, "layer_names")]
    return [group for group in groups if isinstance(group, h5py.Group)]


def _read_current(layers: h5py.Group) -> CurrentWeights:
    variables: dict[str, Shape] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            variables[f"layers/{name}"] = _shape(item)

    layers.visititems(visit)
    return CurrentWeights(variables)


def _shape(item: object) -> Shape:
    if not isinstance(item, h5py.Dataset):
        raise KeyError("a weight is not an array")
    return tuple(int(side) for side in item.shape)


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names in HDF5 attributes: `attribute`, or for long lists `attribute0`, `attribute1`, …"""
    keys = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(keys)}" in group.attrs:
        keys.append(f"{attribute}{len(keys)}")
    return [name.decode() if isinstance(name, bytes) else str(name) for key in keys for name in _values(group, key)]


def _values(group: h5py.Group, key: str) -> list[object]:
    values = group.attrs[key]
    return [] if isinstance(values, h5py.Empty) else list(values)
