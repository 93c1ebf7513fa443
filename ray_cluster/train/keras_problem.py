"""The head's losses and gradients, computed by Keras on TensorFlow. Imports TensorFlow: for the fit worker only.

Rows are summed in shards of `SHARD_ROWS`, and the shards in float64 and in their order, so the arithmetic does not
depend on how many workers share them (`shards`). The matrix products are float32.

Array axes: N row, D feature, K class, P parameter.
"""

import platform
from collections.abc import Callable
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
        self._rows = rows
        self._standard = standard
        self._shards: dict[int, _Shard] = {}

    def __len__(self) -> int:
        return (len(self._rows.labels_N) + SHARD_ROWS - 1) // SHARD_ROWS

    def __getitem__(self, number: int) -> _Shard:
        shard = self._shards.get(number)
        if shard is None:
            part = slice(number * SHARD_ROWS, (number + 1) * SHARD_ROWS)
            features_ND = (self._rows.features_ND[part] - self._standard.mean_D) / self._standard.scale_D
            shard = self._shards[number] = _Shard(
                tf.constant(features_ND.astype(np.float32)),
                tf.constant(self._rows.labels_N[part]),
                tf.constant(self._rows.weights_N[part]),
            )
        return shard


VALIDATION = "validation"
"""Names the validation rows in a `ShardTask`; the other sets are named for their phase."""


class HeadProblem:
    """A head on cached features: one Keras `Dense` layer. Implements `fit_loop.Problem`.

    Standardises with SELECT's statistics in SELECT and with FINAL's in FINAL. Every trainer of a job has one; the
    leader's gets a `map_shards` that also asks the others.
    """

    def __init__(
        self,
        training: dict[Phase, tuple[Rows, Standardisation]],
        validation: Rows | None,
        class_count: int,
        l2: float,
        map_shards: ShardMap = compute_here,
    ) -> None:
        self._class_count = class_count
        self._l2 = l2
        self._map_shards = map_shards
        self._feature_dim = training[Phase.SELECT][0].features_ND.shape[1]
        self._dense = keras.layers.Dense(class_count, dtype="float32")
        self._dense.build((None, self._feature_dim))
        self._rows = {phase.value: ShardedRows(rows, standard) for phase, (rows, standard) in training.items()}
        if validation is not None:
            self._rows[VALIDATION] = ShardedRows(validation, training[Phase.SELECT][1])
        self._gradient_of_shard = _compile_gradient(self._dense)
        self._quality_of_shard = _compile_quality(self._dense)
        self._assigned: Vector | None = None
        """Whose values the layer has. Parameter vectors are never changed in place."""

    @property
    def parameter_count(self) -> int:
        """P: the kernel, then the bias."""
        return head_recipe.parameter_count(self._feature_dim, self._class_count)

    def objective(self, phase: Phase) -> Objective:
        """Weighted mean cross-entropy plus the L2 penalty, and the gradient, both float64."""

        def evaluate(params_P: Vector) -> tuple[float, Vector]:
            kernel_DK, _ = head_recipe.split_params(params_P, self._feature_dim, self._class_count)
            loss = self._l2 / 2 * float(np.sum(kernel_DK * kernel_DK))
            gradient_P = np.zeros_like(params_P)
            gradient_DK, gradient_K = head_recipe.split_params(gradient_P, self._feature_dim, self._class_count)
            gradient_DK += self._l2 * kernel_DK
            for shard_loss, shard_DK, shard_K in self._all(Quantity.GRADIENT, phase.value, params_P):
                loss += float(shard_loss)
                gradient_DK += shard_DK
                gradient_K += shard_K
            return loss, gradient_P

        return evaluate

    def training_quality(self, phase: Phase, params_P: Vector) -> Quality:
        """On the phase's rows, weighted as they are trained on."""
        return self._quality(phase.value, params_P)

    def validation_quality(self, params_P: Vector) -> Quality | None:
        """On the validation rows, each with the same weight."""
        return self._quality(VALIDATION, params_P) if VALIDATION in self._rows else None

    def compute(self, task: ShardTask, shard: int) -> ShardResult:
        """One shard's share of a sum: (loss, kernel's gradient [D, K], bias' [K]) or (loss, accuracy)."""
        self._assign(task.params_P)
        rows = self._rows[task.rows][shard]
        of_shard = self._gradient_of_shard if task.quantity is Quantity.GRADIENT else self._quality_of_shard
        return tuple(part.numpy() for part in of_shard(rows.features_ND, rows.labels_N, rows.weights_N))

    def _all(self, quantity: Quantity, rows: str, params_P: Vector) -> list[ShardResult]:
        return self._map_shards(ShardTask(quantity, rows, params_P), len(self._rows[rows]), self.compute)

    def _quality(self, rows: str, params_P: Vector) -> Quality:
        loss = accuracy = 0.0
        for shard_loss, shard_accuracy in self._all(Quantity.QUALITY, rows, params_P):
            loss += float(shard_loss)
            accuracy += float(shard_accuracy)
        return Quality(loss, accuracy)

    def _assign(self, params_P: Vector) -> None:
        if self._assigned is params_P:
            return
        kernel_DK, bias_K = head_recipe.split_params(params_P, self._feature_dim, self._class_count)
        self._dense.set_weights([kernel_DK.astype(np.float32), bias_K.astype(np.float32)])
        self._assigned = params_P


def _weighted_loss(logits_NK: tf.Tensor, labels_N: tf.Tensor, weights_N: tf.Tensor) -> tf.Tensor:
    losses_N = tf.nn.sparse_softmax_cross_entropy_with_logits(labels_N, tf.cast(logits_NK, tf.float64))
    return tf.reduce_sum(losses_N * weights_N)


def _compile_gradient(dense: keras.layers.Dense) -> Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    @tf.function(autograph=False, reduce_retracing=True)
    def gradient(
        features_ND: tf.Tensor, labels_N: tf.Tensor, weights_N: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = _weighted_loss(dense(features_ND), labels_N, weights_N)
        kernel_DK, bias_K = tape.gradient(loss, [variable.value for variable in dense.trainable_variables])
        return loss, tf.convert_to_tensor(kernel_DK), tf.convert_to_tensor(bias_K)

    return gradient


def _compile_quality(dense: keras.layers.Dense) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    @tf.function(autograph=False, reduce_retracing=True)
    def quality(features_ND: tf.Tensor, labels_N: tf.Tensor, weights_N: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits_NK = dense(features_ND)
        right_N = tf.cast(tf.equal(tf.argmax(logits_NK, axis=1), labels_N), tf.float64)
        return _weighted_loss(logits_NK, labels_N, weights_N), tf.reduce_sum(right_N * weights_N)

    return quality
