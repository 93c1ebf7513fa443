"""The head's losses and gradients, computed by TensorFlow. Imports TensorFlow: for the fit worker only.

The rows stay where they are computed with, standardised, for as long as the fit lasts. They are summed in shards of
`SHARD_ROWS`, and the shards in float64 and in their order, so the arithmetic does not depend on how many workers share
them (`shards`). The matrix products are float32.

Array axes: N row, D feature, K class, P parameter.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from ray_cluster.train import head_recipe
from ray_cluster.train.fit_loop import Phase, Quality
from ray_cluster.train.head_recipe import Standardisation
from ray_cluster.train.lbfgs import Objective, Vector
from ray_cluster.train.shards import Quantity, ShardMap, ShardResult, ShardTask, compute_here

SHARD_ROWS = 512
"""Small enough to share, large enough that a call of TensorFlow costs little beside it. Another number gives other
bits."""
THREADS = 1
"""TensorFlow's threads. Another number may sum in another order: it is part of the fingerprint."""


def make_deterministic() -> None:
    """Fixes whatever TensorFlow's bits depend on. Before anything is computed in this process."""
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)  # nothing here draws a number; TensorFlow insists on a seed all the same


def warm_up() -> None:
    """Traces and runs what every fit runs: the first call takes longer than all others."""
    rows = np.zeros((1, 2), np.float32), np.zeros(1, np.int64), np.ones(1)
    parameters = np.zeros((2, 2), np.float32), np.zeros(2, np.float32)
    for function in _OF_SHARD.values():
        function(*map(tf.constant, (*rows, *parameters)))


def device_name() -> str:
    """The GPU's name, or `cpu:<architecture>:<what its vector units can do>`."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "gpu"))
    interesting = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        words = set()
    found = ",".join(word for word in interesting if word in words)
    return f"cpu:{platform.machine()}:{found}"


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Examples on the host."""

    features_ND: npt.NDArray[np.float32]
    labels_N: npt.NDArray[np.int64]
    weights_N: npt.NDArray[np.float64]
    """Sum to 1."""


@dataclass(frozen=True, slots=True, eq=False)
class _Shard:
    features_ND: tf.Tensor
    """Standardised."""
    labels_N: tf.Tensor
    weights_N: tf.Tensor


class ShardedRows:
    """Rows in shards, which become tensors when they are first used: a worker holds those that it computes."""

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
                tf.constant(features_ND.astype(np.float32)),
                tf.constant(self.rows.labels_N[part]),
                tf.constant(self.rows.weights_N[part]),
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
        self._assigned: tuple[Vector, tf.Tensor, tf.Tensor] | None = None
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
        of_shard = _OF_SHARD[task.quantity]
        params_P = task.params_P.astype(np.float64, copy=False)  # as they are: a head's are float64
        parts = of_shard(rows.features_ND, rows.labels_N, rows.weights_N, *self._assign(params_P))
        return tuple(part.numpy() for part in parts)

    def _all(self, quantity: Quantity, rows: str, params_P: Vector) -> list[ShardResult]:
        return self._map_shards(ShardTask(quantity, rows, params_P), len(self._rows[rows]), self.compute)

    def _assign(self, params_P: Vector) -> tuple[tf.Tensor, tf.Tensor]:
        if self._assigned is None or self._assigned[0] is not params_P:
            kernel_DK, bias_K = head_recipe.split_params(params_P, self._feature_dim, self._class_count)
            as_tensors = tf.constant(kernel_DK.astype(np.float32)), tf.constant(bias_K.astype(np.float32))
            self._assigned = (params_P, *as_tensors)
        return self._assigned[1:]


_SIGNATURE = (
    tf.TensorSpec((None, None), tf.float32),
    tf.TensorSpec((None,), tf.int64),
    tf.TensorSpec((None,), tf.float64),
    tf.TensorSpec((None, None), tf.float32),
    tf.TensorSpec((None,), tf.float32),
)
"""Of any shape, so that a process traces each function once and not for every job."""


def _weighted_quality(logits_NK: tf.Tensor, labels_N: tf.Tensor, weights_N: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    losses_N = tf.nn.sparse_softmax_cross_entropy_with_logits(labels_N, tf.cast(logits_NK, tf.float64))
    right_N = tf.cast(tf.equal(tf.argmax(logits_NK, axis=1), labels_N), tf.float64)
    return tf.reduce_sum(losses_N * weights_N), tf.reduce_sum(right_N * weights_N)


@tf.function(autograph=False, input_signature=_SIGNATURE)
def _gradient(
    features_ND: tf.Tensor, labels_N: tf.Tensor, weights_N: tf.Tensor, kernel_DK: tf.Tensor, bias_K: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    with tf.GradientTape() as tape:
        tape.watch((kernel_DK, bias_K))
        loss, accuracy = _weighted_quality(tf.matmul(features_ND, kernel_DK) + bias_K, labels_N, weights_N)
    of_kernel_DK, of_bias_K = tape.gradient(loss, (kernel_DK, bias_K))
    return loss, accuracy, tf.convert_to_tensor(of_kernel_DK), tf.convert_to_tensor(of_bias_K)


@tf.function(autograph=False, input_signature=_SIGNATURE)
def _quality(
    features_ND: tf.Tensor, labels_N: tf.Tensor, weights_N: tf.Tensor, kernel_DK: tf.Tensor, bias_K: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    return _weighted_quality(tf.matmul(features_ND, kernel_DK) + bias_K, labels_N, weights_N)


@tf.function(autograph=False, input_signature=_SIGNATURE)
def _logits(
    features_ND: tf.Tensor, labels_N: tf.Tensor, weights_N: tf.Tensor, kernel_DK: tf.Tensor, bias_K: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    return (tf.matmul(features_ND, kernel_DK) + bias_K,)


_OF_SHARD = {Quantity.GRADIENT: _gradient, Quantity.QUALITY: _quality, Quantity.LOGITS: _logits}
