"""What the pairs share: the setting, the images, the running stack, and Keras in processes of its own."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from services.contracts.backbones import BackboneName
from tests.benchmarks import images
from tests.benchmarks.images import ImageSet, Originals
from tests.benchmarks.report import Finding
from tests.benchmarks.train.product import JobRun, Product

KERAS_WITHIN_S = 3600.0
POOLED = "pooled"
"""The cut above which there is only the head."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What was asked for."""

    images: Path
    weights: Path
    backbone: BackboneName
    image_count: int
    rounds: int
    keras_epochs: int
    """Epochs of Keras that are measured in each round, 2 or more; later ones are taken to be like them."""
    seeds: tuple[int, ...]
    growth: tuple[int, ...]
    """Numbers of images, in ascending order."""


@dataclass(frozen=True, slots=True)
class KerasRun:
    """A `timed` run of the baseline."""

    epochs_s: list[float]
    validations_s: list[float]
    accuracies: list[float]
    process_s: float
    """From the start of its process to its end."""

    @property
    def start_s(self) -> float:
        """What it took besides its epochs."""
        return self.process_s - sum(self.epochs_s)

    @property
    def trainings_s(self) -> list[float]:
        """Epochs without their validation."""
        return [epoch - validation for epoch, validation in zip(self.epochs_s, self.validations_s, strict=True)]


class Pair(Protocol):
    """Two ways to do the same. Each round measures both, one after the other."""

    def measure(self, number: int) -> None:
        """Does round `number`, from 0."""
        ...

    def finding(self) -> Finding:
        """After all rounds."""
        ...


@dataclass
class Bench:
    """One run of the benchmark. Images are written below `folder`."""

    setting: Setting
    folder: Path
    product: Product
    first: JobRun | None = None
    """The stack's very first job; see `begin`."""
    _scratch: dict[int, JobRun] = field(default_factory=dict[int, JobRun])
    _sets: dict[tuple[int, bool, int], ImageSet] = field(default_factory=dict[tuple[int, bool, int], ImageSet])

    @cached_property
    def originals(self) -> Originals:
        return images.read_originals(self.setting.images)

    @cached_property
    def made(self) -> bool:
        """Whether images have to be made: decided once, so that all pairs see the same kind."""
        return images.must_be_made(self.originals, round(1.1 * self.setting.image_count))

    @property
    def images(self) -> ImageSet:
        """As many as the setting says."""
        return self.image_set(self.setting.image_count)

    def image_set(self, image_count: int, *, made: bool | None = None, first_crop: int = 0) -> ImageSet:
        """So many images; sets with equal `made` and `first_crop` share all that the smaller one has."""
        made = self.made if made is None else made
        key = (image_count, made, first_crop)
        if key not in self._sets:
            picks = images.pick(self.originals, image_count, made=made, first_crop=first_crop)
            folder = self.folder / f"images-{image_count}-{'made' if made else 'own'}-{first_crop}"
            self._sets[key] = images.write(picks, folder, os.cpu_count() or 1)
        return self._sets[key]

    def begin(self) -> None:
        """The stack's very first job, on `images`: it builds the trunk, once for all jobs, and starts Serve."""
        self.first = self.product.train(self.images, self.seed(0))

    def scratch(self, number: int) -> JobRun:
        """The round's job on `images` with nothing known of them; several pairs compare with the same run."""
        if number not in self._scratch:
            own = images.link(self.images, self._folder_of(number))
            self._scratch[number] = self.product.train(own, self.seed(number))
        return self._scratch[number]

    def after_another(self, number: int) -> JobRun:
        """As `scratch`, before the stack is at rest after another job."""
        own = images.link(self.images, self._folder_of(number))
        return self.product.train(own, self.seed(number), at_once=True)

    def grown(self, number: int, image_count: int) -> JobRun:
        """The same user's next job, right after `scratch`: images were added to the dataset, up to so many."""
        more = images.link(self.image_set(image_count), self._folder_of(number))
        return self.product.train(more, self.seed(number), again=True)

    def _folder_of(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def keras_timed(self, number: int, epochs: int, *, cut: str = POOLED) -> KerasRun:
        """The round's training in Keras on `images`; what is above the cut is trained."""
        began_s = time.monotonic()
        fitted = self._keras("timed", (self.seed(number),), epochs, cut)
        return KerasRun(**fitted, process_s=time.monotonic() - began_s)

    def keras_accuracies(self, epochs: int) -> list[list[float]]:
        """On the test images, for each seed after each epoch."""
        return self._keras("accuracy", self.setting.seeds, epochs, POOLED)

    def seed(self, number: int) -> int:
        """The round's."""
        return self.setting.seeds[number % len(self.setting.seeds)]

    def _keras(self, what: str, seeds: tuple[int, ...], epochs: int, cut: str) -> Any:
        command = [sys.executable, "-m", "tests.benchmarks.train.keras_baseline", what]
        command += [str(self.images.folder), str(self.setting.weights), "--backbone", self.setting.backbone]
        command += ["--epochs", str(epochs), "--cut", cut, "--seeds", *map(str, seeds)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.product.rest()
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=KERAS_WITHIN_S
        )
        return json.loads(done.stdout.splitlines()[-1])
