"""Tails: what a job trains, and what serving applies to a trunk's features. NumPy and safetensors only.

`Tail` is a head-only job's; `network_tails` has those of jobs that train more.

Array axes: B batch, D feature, K class.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from services.contracts.errors import CorruptObject

FloatArray = npt.NDArray[np.float32]

_NAMES = ("bias", "kernel")


class AnyTail(Protocol):
    """Whatever maps a trunk's features to classes. Safe to call from several threads."""

    @property
    def feature_dim(self) -> int: ...

    @property
    def class_count(self) -> int: ...

    @property
    def size_bytes(self) -> int:
        """Memory that the tail holds."""
        ...

    def logits(self, features_BD: FloatArray) -> FloatArray:
        """float32 [B, K]; a row depends on that row of the features alone.

        Raises `ValueError` when the features have another width.
        """
        ...

    def probabilities(self, features_BD: FloatArray) -> FloatArray:
        """Softmax of the logits, float32 [B, K]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """A linear classifier on pooled features.

    Raises `ValueError` when the arrays are not float32 or their shapes do not belong together.
    """

    kernel_DK: FloatArray
    bias_K: FloatArray

    def __post_init__(self) -> None:
        if self.kernel_DK.dtype != np.float32 or self.bias_K.dtype != np.float32:
            raise ValueError(f"a tail is float32, not {self.kernel_DK.dtype} and {self.bias_K.dtype}")
        if self.kernel_DK.ndim != 2 or self.bias_K.shape != self.kernel_DK.shape[1:]:
            raise ValueError(f"kernel {self.kernel_DK.shape} and bias {self.bias_K.shape} do not belong together")

    @property
    def feature_dim(self) -> int:
        return self.kernel_DK.shape[0]

    @property
    def class_count(self) -> int:
        return self.kernel_DK.shape[1]

    @property
    def size_bytes(self) -> int:
        """Memory that the tail holds."""
        return self.kernel_DK.nbytes + self.bias_K.nbytes

    def logits(self, features_BD: FloatArray) -> FloatArray:
        """features times kernel plus bias, float32 [B, K].

        Row by row: a product over the whole batch may sum in another order for another batch size, and an image's
        answer must not depend on its neighbours. Raises `ValueError` when the features have another width.
        """
        features_BD = np.ascontiguousarray(features_BD, dtype=np.float32)
        if features_BD.ndim != 2 or features_BD.shape[1] != self.feature_dim:
            raise ValueError(f"features {features_BD.shape} do not fit a tail on {self.feature_dim} features")
        logits_BK = np.empty((len(features_BD), self.class_count), np.float32)
        for row, features_D in enumerate(features_BD):
            logits_BK[row] = features_D @ self.kernel_DK + self.bias_K
        return logits_BK

    def probabilities(self, features_BD: FloatArray) -> FloatArray:
        """Softmax of the logits, float32 [B, K]; each row sums to 1 within rounding."""
        return softmax(self.logits(features_BD))

    def scaled(self, factor: float) -> "Tail":
        """The tail whose logits are this one's times `factor`."""
        return Tail((self.kernel_DK * factor).astype(np.float32), (self.bias_K * factor).astype(np.float32))

    def to_bytes(self) -> bytes:
        """A safetensors file with `kernel` and `bias` and no metadata; equal for equal tails."""
        return save({"bias": np.ascontiguousarray(self.bias_K), "kernel": np.ascontiguousarray(self.kernel_DK)})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Tail":
        """Reads `to_bytes`. Raises `CorruptObject` for anything else."""
        try:
            tensors = load(data)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CorruptObject(f"the tail is not a safetensors file: {error}") from error
        if tuple(sorted(tensors)) != _NAMES:
            raise CorruptObject(f"the tail has tensors {sorted(tensors)}, not {list(_NAMES)}")
        try:
            return cls(tensors["kernel"], tensors["bias"])
        except ValueError as error:
            raise CorruptObject(f"the tail does not fit together: {error}") from error

    def sha256(self) -> str:
        """Over the tensors' names, dtypes, shapes and bytes: equal for equal weights, whatever the file's layout."""
        return tensors_sha256({"bias": self.bias_K, "kernel": self.kernel_DK})


def softmax(logits_BK: FloatArray) -> FloatArray:
    """Of each row, computed in float64."""
    exact_BK = logits_BK.astype(np.float64)
    weights_BK = np.exp(exact_BK - exact_BK.max(axis=1, keepdims=True))
    return (weights_BK / weights_BK.sum(axis=1, keepdims=True)).astype(np.float32)


def tensors_sha256(tensors: Mapping[str, FloatArray]) -> str:
    """Over the tensors' names, dtypes, shapes and bytes, in the names' order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        little_endian = np.ascontiguousarray(tensor, dtype="<f4")
        digest.update(f"{name}\0float32\0{tensor.shape}\0".encode())
        digest.update(little_endian.tobytes())
    return digest.hexdigest()
