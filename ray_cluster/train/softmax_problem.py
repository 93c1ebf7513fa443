"""The head's losses and gradients: softmax regression in NumPy, which is there at once.

The rows stay where they are computed with, standardised, for as long as the fit lasts. They are summed in shards of
`SHARD_ROWS`, and the shards in float64 and in their order, so the arithmetic does not depend on how many workers share
them (`shards`). The matrix products are float32, on one thread of BLAS (`fingerprints.make_deterministic`); all else
is float64.

Array axes: N row, D feature, K class, P parameter.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_cluster.train import head_recipe
from ray_cluster.train.fit_loop import Phase, Quality
from ray_cluster.train.head_recipe import Standardisation
from ray_cluster.train.lbfgs import Objective, Vector
from ray_cluster.train.shards import Quantity, ShardMap, ShardResult, ShardTask, compute_here

SHARD_ROWS = 512
"""Small enough to share, large enough that a product costs more than the calls around it. Another number gives other
bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Examples on the host."""

    features_ND: npt.NDArray[np.float32]
    labels_N: npt.NDArray[np.int64]
    weights_N: npt.NDArray[np.float64]
    """Sum to 1."""


@dataclass(frozen=True, slots=True, eq=False)
class _Shard:
    features_ND: npt.NDArray[np.float32]
    """Standardised."""
    labels_N: npt.NDArray[np.int64]
    weights_N: npt.NDArray[np.float64]


class ShardedRows:
    """Rows in shards, which are standardised when they are first used: a worker holds those that it computes."""

    def __init__(self, rows: Rows, standard: Standardisation) -> None:
        self.rows = rows
        self._standard = standard
        self._shards: dict[int, _Shard] = {}

    def __len__(self) -> int:
        return (len(self.rows.labels_N) + SHARD_ROWS - 1) // SHARD_ROWS

    def __getitem__(self, number: int) -> _Shard:
        shard = self._shards.get(number)
        if shard is None:
            part = slice(number * SHARD_ROWS, (number + 1) * SHARD_ROWS)
            features_ND = (self.rows.features_ND[part] - self._standard.mean_D) / self._standard.scale_D
            shard = self._shards[number] = _Shard(
                features_ND.astype(np.float32), self.rows.labels_N[part], self.rows.weights_N[part]
            )
        return shard


VALIDATION = "validation"
"""Names the validation rows in a `ShardTask`; the other sets are named for their phase."""


class HeadProblem:
    """A head on cached features: softmax of features times kernel plus bias. Implements `fit_loop.Problem`.

    Standardises with SELECT's statistics in SELECT and with FINAL's in FINAL. Every trainer of a job has one; the
    leader's gets a `map_shards` that also asks the others.
    """

    def __init__(
        self,
        training: dict[Phase, tuple[Rows, Standardisation]],
        validation: Rows | None,
        class_count: int,
        starts: Mapping[Phase, Vector],
        map_shards: ShardMap = compute_here,
    ) -> None:
        """A phase without a start begins with zeros. SEARCH has SELECT's rows and start."""
        self._class_count = class_count
        self._starts = starts
        self._map_shards = map_shards
        self._feature_dim = training[Phase.SELECT][0].features_ND.shape[1]
        self._rows = {phase.value: ShardedRows(rows, standard) for phase, (rows, standard) in training.items()}
        self._rows[Phase.SEARCH.value] = self._rows[Phase.SELECT.value]
        if validation is not None:
            self._rows[VALIDATION] = ShardedRows(validation, training[Phase.SELECT][1])
        self._assigned: tuple[Vector, _Kernel, _Bias] | None = None
        """The newest parameters as float32 kernel and bias. Parameter vectors are never changed in place."""
        self._evaluated: tuple[str, Vector, Quality] | None = None
        """What the newest gradient's pass over the rows has shown on its way."""

    @property
    def parameter_count(self) -> int:
        """P: the kernel, then the bias."""
        return head_recipe.parameter_count(self._feature_dim, self._class_count)

    @property
    def validates(self) -> bool:
        """Whether there are validation rows."""
        return VALIDATION in self._rows

    @property
    def kernel_size(self) -> int:
        """How many of the parameters, the first ones, are the kernel's."""
        return self._feature_dim * self._class_count

    def start(self, phase: Phase) -> Vector:
        """The parent's parameters in this phase's standardisation, else zeros."""
        start = self._starts.get(Phase.SELECT if phase is Phase.SEARCH else phase)
        return np.zeros(self.parameter_count) if start is None else start

    def objective(self, phase: Phase) -> Objective:
        """Weighted mean cross-entropy and its gradient, both float64."""

        def evaluate(params_P: Vector) -> tuple[float, Vector]:
            loss = accuracy = 0.0
            gradient_P = np.zeros_like(params_P)
            gradient_DK, gradient_K = head_recipe.split_params(gradient_P, self._feature_dim, self._class_count)
            for shard_loss, shard_accuracy, shard_DK, shard_K in self._all(Quantity.GRADIENT, phase.value, params_P):
                loss += float(shard_loss)
                accuracy += float(shard_accuracy)
                gradient_DK += shard_DK
                gradient_K += shard_K
            self._evaluated = (phase.value, params_P, Quality(loss, accuracy))
            return loss, gradient_P

        return evaluate

    def training_quality(self, phase: Phase, params_P: Vector) -> Quality:
        """On the phase's rows, weighted as they are trained on. Costs nothing for what was evaluated last."""
        found = self._evaluated
        if found is None or found[0] != phase.value or found[1] is not params_P:
            self.objective(phase)(params_P)
            found = self._evaluated
        assert found is not None  # noqa: S101
        return found[2]

    def validation_quality(self, params_P: Vector) -> Quality | None:
        """On the validation rows, each with the same weight."""
        if not self.validates:
            return None
        loss = accuracy = 0.0
        for shard_loss, shard_accuracy in self._all(Quantity.QUALITY, VALIDATION, params_P):
            loss += float(shard_loss)
            accuracy += float(shard_accuracy)
        return Quality(loss, accuracy)

    def validation_logits(self, params_P: Vector) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None:
        """(logits [N, K], labels [N]) of the validation rows; None where there are none."""
        if not self.validates:
            return None
        logits = [shard_NK for (shard_NK,) in self._all(Quantity.LOGITS, VALIDATION, params_P)]
        return np.concatenate(logits), self._rows[VALIDATION].rows.labels_N

    def compute(self, task: ShardTask, shard: int) -> ShardResult:
        """One shard's share of a sum: (loss, accuracy), and of a gradient the kernel's [D, K] and the bias' [K]; or its
        (logits [N, K],)."""
        rows = self._rows[task.rows][shard]
        params_P = task.params_P.astype(np.float64, copy=False)  # as they are: a head's are float64
        kernel_DK, bias_K = self._assign(params_P)
        logits_NK = rows.features_ND @ kernel_DK + bias_K
        match task.quantity:
            case Quantity.LOGITS:
                return (logits_NK,)
            case Quantity.QUALITY:
                return _quality(logits_NK, _log_softmax(logits_NK), rows)
            case Quantity.GRADIENT:
                log_NK = _log_softmax(logits_NK)
                return *_quality(logits_NK, log_NK, rows), *_gradient(log_NK, rows)

    def _all(self, quantity: Quantity, rows: str, params_P: Vector) -> list[ShardResult]:
        return self._map_shards(ShardTask(quantity, rows, params_P), len(self._rows[rows]), self.compute)

    def _assign(self, params_P: Vector) -> "tuple[_Kernel, _Bias]":
        if self._assigned is None or self._assigned[0] is not params_P:
            kernel_DK, bias_K = head_recipe.split_params(params_P, self._feature_dim, self._class_count)
            self._assigned = (params_P, kernel_DK.astype(np.float32), bias_K.astype(np.float32))
        return self._assigned[1:]


_Kernel = npt.NDArray[np.float32]
_Bias = npt.NDArray[np.float32]


def _log_softmax(logits_NK: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Each row's logarithms of probabilities, float64 [N, K]."""
    shifted_NK = logits_NK.astype(np.float64)
    shifted_NK -= shifted_NK.max(axis=1, keepdims=True)
    return shifted_NK - np.log(np.exp(shifted_NK).sum(axis=1, keepdims=True))


def _quality(logits_NK: npt.NDArray[np.float32], log_NK: npt.NDArray[np.float64], rows: _Shard) -> ShardResult:
    """(weighted cross-entropy, weighted accuracy), float64 scalars."""
    losses_N = -log_NK[np.arange(len(log_NK)), rows.labels_N]
    right_N = logits_NK.argmax(axis=1) == rows.labels_N
    return np.asarray((losses_N * rows.weights_N).sum()), np.asarray((right_N * rows.weights_N).sum())


def _gradient(log_NK: npt.NDArray[np.float64], rows: _Shard) -> ShardResult:
    """The weighted cross-entropy's gradient by the kernel, float32 [D, K], and by the bias, float64 [K]."""
    wrong_NK = np.exp(log_NK)
    wrong_NK[np.arange(len(wrong_NK)), rows.labels_N] -= 1.0
    wrong_NK *= rows.weights_N[:, np.newaxis]
    return rows.features_ND.T @ wrong_NK.astype(np.float32), wrong_NK.sum(axis=0)
