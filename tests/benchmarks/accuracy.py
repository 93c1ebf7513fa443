"""What a default head-only job reaches on real images: `make bench-accuracy`.

Runs one job per dataset and seed through the whole product, and the first of them twice, to see that equal specs give
equal weights. The baseline stands beside it: scikit-learn's logistic regression (`StandardScaler`, `C=0.01`) on the
same frozen features, as measured once and recorded in `PROBE`. Writes build/bench/accuracy.json and prints a table.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from services.client import Rekindle
from services.contracts.backbones import BackboneName
from services.contracts.jobs import TrainingJobSpec, WeightsUri
from services.local.background import BackgroundStack
from tests.servers.data import shared_data

PROBE = {"trash6": 0.733, "produce10": 0.931}
"""Test accuracy of the logistic-regression probe."""
SEEDS = (0, 1, 2)
OUTPUT = Path("build/bench/accuracy.json")


@dataclass(frozen=True, slots=True)
class Run:
    """One finished job."""

    dataset: str
    seed: int
    accuracy: float
    """On the test split, 0 to 1."""
    weights_sha256: str
    wall_s: float
    """From the request to the published version."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", nargs="+", default=list(PROBE))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rekindle-bench-") as home:
        stack = BackgroundStack(Path(home), os.environ)
        stack.start()
        try:
            with Rekindle(stack.wait_until_ready().url) as client:
                runs = [run(client, name, seed) for name in options.datasets for seed in options.seeds]
                again = run(client, options.datasets[0], options.seeds[0])
        finally:
            stack.stop()
    same = again.weights_sha256 == runs[0].weights_sha256
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    report = {"runs": [asdict(r) for r in runs], "same_spec_same_weights": same, "probe": PROBE}
    OUTPUT.write_text(json.dumps(report, indent=2) + "\n")
    print("| dataset | seeds | test accuracy | logistic-regression probe | seconds per job |")
    print("|---|---|---|---|---|")
    for name in options.datasets:
        of = [r for r in runs if r.dataset == name]
        accuracies = ", ".join(f"{r.accuracy:.3f}" for r in of)
        seconds = ", ".join(f"{r.wall_s:.0f}" for r in of)
        seeds = ", ".join(str(r.seed) for r in of)
        print(f"| {name} | {seeds} | {accuracies} | {PROBE.get(name, float('nan')):.3f} | {seconds} |")
    print(f"\nthe same spec twice gave {'the same' if same else 'DIFFERENT'} weights")
    return 0 if same else 1


def run(client: Rekindle, name: str, seed: int) -> Run:
    """One default head-only job with MobileNetV2's ImageNet weights."""
    data = shared_data()
    dataset = client.datasets.create_from_prefix(name, (data / "datasets" / name).as_uri())
    weights = next((data / "weights" / "mobilenet_v2_1.0_224").glob("*_int8.h5"))
    began = time.monotonic()
    job = client.training_jobs.create(
        TrainingJobSpec(
            dataset_id=dataset.id,
            backbone=BackboneName.MOBILENET_V2,
            weights=WeightsUri(uri=weights.as_uri()),
            seed=seed,
        )
    )
    job = client.training_jobs.wait(job.id, timeout_s=600)
    wall_s = time.monotonic() - began
    assert job.result is not None
    version = client.models.version(job.result.model_name, job.result.version)
    assert version.evaluation is not None
    return Run(name, seed, version.evaluation.accuracy, version.weights_sha256, wall_s)


if __name__ == "__main__":
    sys.exit(main())
