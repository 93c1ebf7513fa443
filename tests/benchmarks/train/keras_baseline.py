"""Transfer learning as people write it in Keras today, in a process of its own: the other side of the comparisons.

`image_dataset_from_directory` decodes and resizes each image in every epoch; a frozen backbone, pooled, under a dense
layer; Adam; the test images as `validation_data`. Every core, and prefetching as its guide recommends. `timed` runs
that. `accuracy` trains the same head on the same pixels' features, computed once: the backbone is frozen and nothing
is augmented, so it is the same model in a fraction of the time. Prints one JSON object.

Array axes: N image, D feature.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from ray_cluster.vision import blocks
from ray_cluster.vision.backbones import ARCHITECTURES, pooled_features
from ray_cluster.vision.weight_loading import load_network
from services.contracts.backbones import BACKBONES, BackboneName

BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Fitted:
    """A `model.fit` of some epochs."""

    epochs_s: list[float]
    """Each epoch's seconds, its validation included."""
    validations_s: list[float]
    """Of these, the validation's."""
    accuracies: list[float]
    """On the test images after each epoch, 0 to 1."""


class EpochClock(keras.callbacks.Callback):
    """Times epochs and, within them, validation."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs_s: list[float] = []
        self.validations_s: list[float] = []
        self._epoch_began_s = self._validation_began_s = 0.0

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self._epoch_began_s = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.epochs_s.append(time.monotonic() - self._epoch_began_s)

    def on_test_begin(self, logs: object = None) -> None:
        self._validation_began_s = time.monotonic()

    def on_test_end(self, logs: object = None) -> None:
        self.validations_s.append(time.monotonic() - self._validation_began_s)


def read_images(folder: Path, size: int, seed: int | None) -> tuple[tf.data.Dataset, int]:
    """Batches of (image, label), shuffled anew in every epoch where there is a seed; and how many classes there are."""
    dataset = keras.utils.image_dataset_from_directory(
        folder, image_size=(size, size), batch_size=BATCH_SIZE, shuffle=seed is not None, seed=seed, verbose=False
    )
    return dataset.prefetch(tf.data.AUTOTUNE), len(dataset.class_names)


def build_base(backbone: BackboneName, weights: Path, size: int, cut: str = blocks.POOLED) -> keras.Model:
    """The backbone, frozen below the cut: float32 images with values 0 to 255 to features."""
    pretrained = load_network(backbone, size, weights)
    pooled = pooled_features(backbone, pretrained.network, pretrained.top is not None)
    network = keras.Model(pretrained.network.input, pooled)
    if cut == blocks.POOLED:
        network.trainable = False
    else:
        first = blocks.cut_name(backbone, pretrained.network, cut)
        above = keras.Model(blocks.cut_tensor(backbone, pretrained.network, first), pooled).layers
        for layer in network.layers:
            layer.trainable = layer in above and not isinstance(layer, keras.layers.BatchNormalization)
    images = keras.Input((size, size, 3))
    return keras.Model(images, network(ARCHITECTURES[backbone].preprocess(images), training=False))


def add_head(base: keras.Model, class_count: int) -> keras.Model:
    """The base under a dense layer, compiled."""
    model = keras.Model(base.input, keras.layers.Dense(class_count, activation="softmax")(base.output))
    model.compile(keras.optimizers.Adam(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def timed(folder: Path, backbone: BackboneName, weights: Path, seed: int, epochs: int, cut: str) -> Fitted:
    """Trains on images."""
    size = BACKBONES[backbone].default_image_size
    keras.utils.set_random_seed(seed)
    train, class_count = read_images(folder / "train", size, seed)
    test, _ = read_images(folder / "test", size, None)
    model = add_head(build_base(backbone, weights, size, cut), class_count)
    clock = EpochClock()
    history = model.fit(train, validation_data=test, epochs=epochs, verbose=0, callbacks=[clock]).history
    return Fitted(clock.epochs_s, clock.validations_s, [float(each) for each in history["val_accuracy"]])


def accuracy(folder: Path, backbone: BackboneName, weights: Path, seeds: list[int], epochs: int) -> list[list[float]]:
    """Accuracy on the test images after each epoch, for each seed."""
    size = BACKBONES[backbone].default_image_size
    base = build_base(backbone, weights, size)
    train, class_count = read_images(folder / "train", size, None)
    test, _ = read_images(folder / "test", size, None)
    train_ND, train_labels_N = extract(base, train)
    validation = extract(base, test)
    histories: list[list[float]] = []
    for seed in seeds:
        keras.utils.set_random_seed(seed)
        inputs = keras.Input(base.output.shape[1:])
        head = add_head(keras.Model(inputs, inputs), class_count)
        fitted = head.fit(
            train_ND, train_labels_N, BATCH_SIZE, epochs, validation_data=validation, shuffle=True, verbose=0
        )
        histories.append([float(each) for each in fitted.history["val_accuracy"]])
    return histories


def extract(base: keras.Model, images: tf.data.Dataset) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """(features [N, D], labels [N])."""
    batches = [(base.predict_on_batch(batch), labels.numpy()) for batch, labels in images]
    features, labels = zip(*batches, strict=True)
    return np.concatenate(features), np.concatenate(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["timed", "accuracy"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--backbone", type=BackboneName, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--cut", default=blocks.POOLED, help="of `timed`: what is above it is trained")
    given = parser.parse_args()
    if given.what == "timed":
        fitted = timed(given.folder, given.backbone, given.weights, given.seeds[0], given.epochs, given.cut)
        print(json.dumps(asdict(fitted)))
    else:
        print(json.dumps(accuracy(given.folder, given.backbone, given.weights, given.seeds, given.epochs)))


if __name__ == "__main__":
    main()
