"""The head's losses and gradients, computed by Keras on TensorFlow. Imports TensorFlow: for the fit worker only.

Rows are summed in shards of `SHARD_ROWS`, and the shards in float64 and in their order, so that the arithmetic will
not depend on how many workers share them. The matrix products are float32.

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

SHARD_ROWS = 4096
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


class HeadProblem:
    """A head on cached features: one Keras `Dense` layer. Implements `fit_loop.Problem`.

    Standardises with SELECT's statistics in SELECT and with FINAL's in FINAL.
    """

    def __init__(
        self,
        training: dict[Phase, tuple[Rows, Standardisation]],
        validation: Rows | None,
        class_count: int,
        l2: float,
    ) -> None:
        self._class_count = class_count
        self._l2 = l2
        self._feature_dim = training[Phase.SELECT][0].features_ND.shape[1]
        self._dense = keras.layers.Dense(class_count, dtype="float32")
        self._dense.build((None, self._feature_dim))
        self._shards = {phase: _shards(rows, standard) for phase, (rows, standard) in training.items()}
        self._validation = None if validation is None else _shards(validation, training[Phase.SELECT][1])
        self._gradient_of_shard = _compile_gradient(self._dense)
        self._quality_of_shard = _compile_quality(self._dense)

    @property
    def parameter_count(self) -> int:
        """P: the kernel, then the bias."""
        return head_recipe.parameter_count(self._feature_dim, self._class_count)

    def objective(self, phase: Phase) -> Objective:
        """Weighted mean cross-entropy plus the L2 penalty, and the gradient, both float64."""
        shards = self._shards[phase]

        def evaluate(params_P: Vector) -> tuple[float, Vector]:
            self._assign(params_P)
            kernel_DK, _ = head_recipe.split_params(params_P, self._feature_dim, self._class_count)
            loss = self._l2 / 2 * float(np.sum(kernel_DK * kernel_DK))
            gradient_P = np.zeros_like(params_P)
            gradient_DK, gradient_K = head_recipe.split_params(gradient_P, self._feature_dim, self._class_count)
            gradient_DK += self._l2 * kernel_DK
            for shard in shards:
                shard_loss, shard_DK, shard_K = self._gradient_of_shard(
                    shard.features_ND, shard.labels_N, shard.weights_N
                )
                loss += float(shard_loss)
                gradient_DK += shard_DK.numpy()
                gradient_K += shard_K.numpy()
            return loss, gradient_P

        return evaluate

    def training_quality(self, phase: Phase, params_P: Vector) -> Quality:
        """On the phase's rows, weighted as they are trained on."""
        return self._quality(self._shards[phase], params_P)

    def validation_quality(self, params_P: Vector) -> Quality | None:
        """On the validation rows, each with the same weight."""
        return None if self._validation is None else self._quality(self._validation, params_P)

    def _quality(self, shards: list[_Shard], params_P: Vector) -> Quality:
        self._assign(params_P)
        loss = accuracy = 0.0
        for shard in shards:
            shard_loss, shard_accuracy = self._quality_of_shard(shard.features_ND, shard.labels_N, shard.weights_N)
            loss += float(shard_loss)
            accuracy += float(shard_accuracy)
        return Quality(loss, accuracy)

    def _assign(self, params_P: Vector) -> None:
        kernel_DK, bias_K = head_recipe.split_params(params_P, self._feature_dim, self._class_count)
        self._dense.set_weights([kernel_DK.astype(np.float32), bias_K.astype(np.float32)])


def _shards(rows: Rows, standard: Standardisation) -> list[_Shard]:
    shards: list[_Shard] = []
    for start in range(0, len(rows.labels_N), SHARD_ROWS):
        part = slice(start, start + SHARD_ROWS)
        features_ND = (rows.features_ND[part] - standard.mean_D) / standard.scale_D
        shards.append(
            _Shard(
                tf.constant(features_ND.astype(np.float32)),
                tf.constant(rows.labels_N[part]),
                tf.constant(rows.weights_N[part]),
            )
        )
    return shards


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
