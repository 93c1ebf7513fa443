"""Fine-tuning's losses and gradients, computed by Keras on TensorFlow. Imports TensorFlow: for trainers only.

A batch is summed in shards of `SHARD_IMAGES`, in their order, so the arithmetic does not depend on how many workers
share them (`shards`). The parameters are one float32 vector: the trainable variables above the cut, then the head's
kernel and bias. The head works on pooled features that are standardised as in the fit before, so it begins where that
fit ended, divided by its temperature, with the same penalty.

Array axes: B image of a shard, D feature at the cut, F pooled feature, K class, P parameter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from ray_cluster.train import fine_tune_schedule, head_recipe
from ray_cluster.train.adam import Vector32
from ray_cluster.train.fine_tune_data import Examples, Places
from ray_cluster.train.fine_tune_loop import StepResult
from ray_cluster.train.fit_loop import Quality
from ray_cluster.train.head_recipe import Standardisation
from ray_cluster.train.lbfgs import Vector
from ray_cluster.train.shards import Quantity, ShardMap, ShardResult, ShardTask, compute_here
from ray_cluster.vision.tails import Tail

SHARD_IMAGES = 8
"""Images that a worker computes at a time. Another number gives other bits."""
VALIDATION_SHARD_IMAGES = 64

_VALIDATION = "validation"


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """What is trained on, or validated on."""

    examples: Examples
    labels_N: npt.NDArray[np.int64]
    weights_N: npt.NDArray[np.float64]
    """Sum to 1."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the batches and the loss."""

    seed: int
    batch_size: int
    dropout: float
    l2: float
    """On the head's kernel."""
    views: tuple[int, ...]
    """Of each training image; an epoch sees one of them."""


class NetworkProblem:
    """The network above a cut and its head. Implements `fine_tune_loop.FineTuneProblem`.

    Every trainer of a job has one; the leader's gets a `map_shards` that also asks the others.
    """

    def __init__(
        self,
        upper: keras.Model,
        standard: Standardisation,
        class_count: int,
        training: Images,
        validation: Images | None,
        recipe: Recipe,
        map_shards: ShardMap = compute_here,
    ) -> None:
        self.upper = upper
        self._training = training
        self._validation = validation
        self._recipe = recipe
        self._map_shards = map_shards
        self._standard = standard
        self._class_count = class_count
        self._pooled_dim = len(standard.mean_D)
        self._network = _Network(upper, standard, class_count)
        self.block_parameters = self._network.block_parameters
        self._pretrained_P = np.concatenate([np.zeros(0), *_flat(upper.trainable_variables)]).astype(np.float32)
        self._assigned: Vector | Vector32 | None = None
        """Whose values the variables have. Parameter vectors are never changed in place."""
        self._plan = lru_cache(2)(self._plan_epoch)

    @property
    def image_count(self) -> int:
        return len(self._training.labels_N)

    # --- the parameters ---

    def start(self, head: Tail) -> Vector32:
        """The pretrained blocks and the fitted head, which is on raw features."""
        kernel_FK = head.kernel_DK.astype(np.float64) * self._standard.scale_D[:, np.newaxis]
        bias_K = head.bias_K + self._standard.mean_D @ head.kernel_DK.astype(np.float64)
        return np.concatenate([self._pretrained_P, kernel_FK.ravel(), bias_K]).astype(np.float32)

    def finish(self, params_P: Vector32) -> Tail:
        """Leaves the parameters in `upper`, and returns the head for raw features."""
        self._assign(params_P)
        return head_recipe.fold(params_P[self.block_parameters :].astype(np.float64), self._standard)

    # --- sums over shards ---

    def warm_up(self, params_P: Vector32) -> None:
        """Computes a shard of each kind, for nothing but having done it."""
        self.compute(ShardTask(Quantity.GRADIENT, _step_rows(0, 0), params_P), 0)
        if self._validation is not None:
            self.compute(ShardTask(Quantity.QUALITY, _VALIDATION, params_P), 0)

    def step(self, epoch: int, step: int, params_P: Vector32) -> StepResult:
        """See `FineTuneProblem.step`."""
        count = len(self._shard_places(epoch, step))
        task = ShardTask(Quantity.GRADIENT, _step_rows(epoch, step), params_P)
        loss = accuracy = 0.0
        gradient_P = np.zeros_like(params_P)
        kernel = slice(self.block_parameters, len(params_P) - self._class_count)
        gradient_P[kernel] = np.float32(self._recipe.l2) * params_P[kernel]
        for shard_loss, shard_accuracy, shard_P in self._map_shards(task, count, self.compute):
            loss += float(shard_loss)
            accuracy += float(shard_accuracy)
            gradient_P += shard_P
        return StepResult(loss, accuracy, gradient_P)

    def validation_quality(self, params_P: Vector32) -> Quality | None:
        """See `FineTuneProblem.validation_quality`."""
        if self._validation is None:
            return None
        count = -(-len(self._validation.labels_N) // VALIDATION_SHARD_IMAGES)
        task = ShardTask(Quantity.QUALITY, _VALIDATION, params_P)
        loss = accuracy = 0.0
        for shard_loss, shard_accuracy in self._map_shards(task, count, self.compute):
            loss += float(shard_loss)
            accuracy += float(shard_accuracy)
        return Quality(loss, accuracy)

    def compute(self, task: ShardTask, shard: int) -> ShardResult:
        """One shard's share of a sum: (loss, accuracy, gradient [P]), or without the gradient."""
        self._assign(task.params_P)
        if task.quantity is Quantity.QUALITY:
            return self._validate(shard)
        _, epoch, step = task.rows.split(":")
        return self._gradient(int(epoch), int(step), shard)

    def _gradient(self, epoch: int, step: int, shard: int) -> ShardResult:
        shards = self._shard_places(epoch, step)
        places = shards[shard]
        features_BD = self._training.examples.read(places)
        self._expect_next(epoch, step, shard)
        rows = [image for image, _ in places]
        kept_BF = np.stack(
            [
                fine_tune_schedule.kept_features(self._recipe.seed, epoch, row, self._pooled_dim, self._recipe.dropout)
                for row in rows
            ]
        )
        in_batch = sum(len(each) for each in shards)
        weights_B = self._training.weights_N[rows] * (self.image_count / in_batch)
        shares_B = np.full(len(rows), 1 / in_batch)
        result = self._network.gradient(features_BD, kept_BF, self._training.labels_N[rows], weights_B, shares_B)
        return tuple(part.numpy() for part in result)

    def _validate(self, shard: int) -> ShardResult:
        assert self._validation is not None  # noqa: S101
        last = len(self._validation.labels_N)
        rows = range(shard * VALIDATION_SHARD_IMAGES, min(last, (shard + 1) * VALIDATION_SHARD_IMAGES))
        features_BD = self._validation.examples.read([(row, 0) for row in rows])
        weights_B = self._validation.weights_N[list(rows)]
        result = self._network.quality(features_BD, self._validation.labels_N[list(rows)], weights_B)
        return tuple(part.numpy() for part in result)

    # --- which images ---

    def _plan_epoch(self, epoch: int) -> Places:
        """The epoch's images in order, each with its view."""
        order_N = fine_tune_schedule.order(self._recipe.seed, epoch, self.image_count)
        chosen_N = fine_tune_schedule.views(self._recipe.seed, epoch, self.image_count, len(self._recipe.views))
        return [(int(image), self._recipe.views[chosen_N[image]]) for image in order_N]

    def _shard_places(self, epoch: int, step: int) -> Sequence[Places]:
        batch = self._plan(epoch)[step * self._recipe.batch_size : (step + 1) * self._recipe.batch_size]
        return [batch[start : start + SHARD_IMAGES] for start in range(0, len(batch), SHARD_IMAGES)]

    def _expect_next(self, epoch: int, step: int, shard: int) -> None:
        """Whoever computed a shard of this step mostly computes that of the next step too."""
        following = self._shard_places(epoch, step + 1) or self._shard_places(epoch + 1, 0)
        if shard < len(following):
            self._training.examples.expect(following[shard])

    def _assign(self, params_P: Vector | Vector32) -> None:
        if self._assigned is params_P:
            return
        self._network.assign(tf.constant(params_P))
        self._assigned = params_P


class _Network:
    """What TensorFlow compiles: the network above the cut, a standardisation, the head, and its loss."""

    def __init__(self, upper: keras.Model, standard: Standardisation, class_count: int) -> None:
        self._upper = upper
        self._mean_F = tf.constant(standard.mean_D.astype(np.float32))
        self._scale_F = tf.constant(standard.scale_D.astype(np.float32))
        pooled_dim = len(standard.mean_D)
        self._kernel_FK = tf.Variable(tf.zeros((pooled_dim, class_count)))
        self._bias_K = tf.Variable(tf.zeros((class_count,)))
        blocks = [variable.value for variable in upper.trainable_variables]
        self._variables = [*blocks, self._kernel_FK, self._bias_K]
        self._sizes = [int(np.prod(variable.shape)) for variable in self._variables]
        self.block_parameters = sum(self._sizes[:-2])
        self.assign = _compiled(self._assign)
        self.gradient = _compiled(self._gradient)
        self.quality = _compiled(self._quality)

    def _assign(self, params_P: tf.Tensor) -> None:
        for variable, part in zip(self._variables, tf.split(params_P, self._sizes), strict=True):
            variable.assign(tf.reshape(part, variable.shape))

    def _logits(self, features_BD: tf.Tensor, kept_BF: tf.Tensor | None) -> tf.Tensor:
        pooled_BF = (self._upper(features_BD, training=False) - self._mean_F) / self._scale_F
        if kept_BF is not None:
            pooled_BF *= kept_BF
        return tf.cast(tf.matmul(pooled_BF, self._kernel_FK) + self._bias_K, tf.float64)

    def _gradient(
        self, features_BD: tf.Tensor, kept_BF: tf.Tensor, labels_B: tf.Tensor, weights_B: tf.Tensor, shares_B: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            logits_BK = self._logits(features_BD, kept_BF)
            loss = _weighted_loss(logits_BK, labels_B, weights_B)
        gradients = tape.gradient(loss, self._variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradient_P = tf.concat([tf.reshape(tf.convert_to_tensor(each), (-1,)) for each in gradients], axis=0)
        return loss, _weighted_accuracy(logits_BK, labels_B, shares_B), gradient_P

    def _quality(
        self, features_BD: tf.Tensor, labels_B: tf.Tensor, weights_B: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        logits_BK = self._logits(features_BD, None)
        return _weighted_loss(logits_BK, labels_B, weights_B), _weighted_accuracy(logits_BK, labels_B, weights_B)


def _step_rows(epoch: int, step: int) -> str:
    """Names a step's batch in a `ShardTask`."""
    return f"step:{epoch}:{step}"


def _flat(variables: Sequence[keras.Variable]) -> list[npt.NDArray[np.float32]]:
    return [variable.numpy().ravel() for variable in variables]


def _compiled(function: Callable[..., object]) -> Callable[..., tuple[tf.Tensor, ...]]:
    return tf.function(function, autograph=False, reduce_retracing=True)


def _weighted_loss(logits_BK: tf.Tensor, labels_B: tf.Tensor, weights_B: tf.Tensor) -> tf.Tensor:
    losses_B = tf.nn.sparse_softmax_cross_entropy_with_logits(labels_B, logits_BK)
    return tf.reduce_sum(losses_B * weights_B)


def _weighted_accuracy(logits_BK: tf.Tensor, labels_B: tf.Tensor, weights_B: tf.Tensor) -> tf.Tensor:
    right_B = tf.cast(tf.equal(tf.argmax(logits_BK, axis=1), labels_B), tf.float64)
    return tf.reduce_sum(right_B * weights_B)
