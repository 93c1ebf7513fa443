"""The feature pass, reading and checking the images included, against what the same cores could do if nothing but the
trunk, or the decoder, ran.

Array axes: N image, H height, W width, C channel.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from ray_cluster.vision import images
from ray_cluster.vision.engines import load_engine
from ray_cluster.vision.engines.choice import contenders
from services.contracts.jobs import Stage
from services.contracts.models import TrunkManifest
from services.runtime.objects import open_store
from tests.benchmarks.rates import on_every_core, rate_of
from tests.benchmarks.report import Figure, Finding, Table
from tests.benchmarks.train.bench import Bench

SAMPLE = 64
"""Images that each process goes round."""


class LimitsPair:
    """One process per core with one thread each, as the feature pass has them, on images in memory."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._pass: list[float] = []
        self._forward: list[float] = []
        self._decode: list[float] = []

    def measure(self, number: int) -> None:
        run = self._bench.scratch(number)
        # Preflight computes the features of what it reads; the stage for those that are missing then has nothing to do.
        pass_s = sum(run.stages[stage].compute_s for stage in (Stage.PREFLIGHT, Stage.FEATURES))
        self._pass.append(self._bench.images.image_count / pass_s)
        bucket = self._bench.product.home / "bucket"
        trunks = [path.read_text() for path in bucket.glob("trunks/*/trunk.json")]
        (trunk_json,) = [each for each in trunks if TrunkManifest.model_validate_json(each).cut == "pooled"]
        files = sorted(path for path in self._bench.images.folder.rglob("*") if path.is_file())[:SAMPLE]
        self._bench.product.rest()
        engines = contenders([TrunkManifest.model_validate_json(trunk_json)], gpu=False)
        rates = [on_every_core(partial(forward_rate, name), bucket, trunk_json, files) for name in engines]
        self._forward.append(max(rates))
        self._decode.append(on_every_core(decode_rate, bucket, trunk_json, files))

    def finding(self) -> Finding:
        forward, decode = self._forward, self._decode
        both = [1 / (1 / f + 1 / d) for f, d in zip(forward, decode, strict=True)]
        rates = ("images per second", median(self._pass), median(forward), median(decode), median(both))
        return Finding(
            [
                Figure(
                    "share_of_limit",
                    _share(self._pass, forward),
                    "feature pass / the fastest engine alone",
                ),
                Figure("share_of_decode_limit", _share(self._pass, decode), "feature pass / decoding alone"),
                Figure("share_of_joint_limit", _share(self._pass, both), "feature pass / decoding, then forward pass"),
            ],
            [
                Table(
                    "The feature pass and its limits on all cores",
                    ("", "feature pass", "forward alone", "decoding alone", "one after the other"),
                    [rates],
                )
            ],
            measurements={"feature_pass": self._pass, "forward": forward, "decode": decode},
        )


def forward_rate(engine_name: str, bucket: Path, trunk_json: str, files: Sequence[Path]) -> float:
    """Of an engine."""
    trunk = TrunkManifest.model_validate_json(trunk_json)
    engine = load_engine(open_store(bucket.as_uri()), trunk, engine_name, threads=1)
    images_NHWC = np.stack([images.decode(file.read_bytes(), trunk.image_size) for file in files])
    return rate_of(lambda n: engine.features(images_NHWC[n : n + 1]), len(files))


def decode_rate(bucket: Path, trunk_json: str, files: Sequence[Path]) -> float:
    """From the file's bytes to the trunk's input."""
    size = TrunkManifest.model_validate_json(trunk_json).image_size
    contents = [file.read_bytes() for file in files]
    return rate_of(lambda n: images.decode(contents[n], size), len(files))


def _share(ours: Sequence[float], limits: Sequence[float]) -> float:
    return median(our / limit for our, limit in zip(ours, limits, strict=True))
