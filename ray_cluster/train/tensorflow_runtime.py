"""TensorFlow in a trainer, which only fine-tuning needs. Imports TensorFlow, which takes seconds."""

from functools import cache

import keras
import numpy as np
import tensorflow as tf

from ray_cluster.train.fingerprints import THREADS
from ray_cluster.vision.devices import cpu_name, gpu_name
from services.contracts.models import Fingerprint


@cache
def make_deterministic() -> None:
    """Fixes whatever TensorFlow's bits depend on, and runs it once: its first operation takes longer than others.

    Before anything else is computed by it in this process.
    """
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)  # nothing of ours draws a number; TensorFlow insists on a seed all the same
    tf.matmul(tf.zeros((1, 1)), tf.zeros((1, 1)))


def of_tensorflow(trunk_engine: str) -> Fingerprint:
    """Of what TensorFlow computes here, from features of an engine."""
    return Fingerprint(
        device=gpu_name() or cpu_name(),
        trunk_engine=trunk_engine,
        threads=THREADS,
        numpy=np.__version__,
        tensorflow=tf.__version__,
        keras=keras.__version__,
    )
