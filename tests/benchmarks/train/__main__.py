"""`make bench-train`: training against other ways to do the same, all in one run, into build/bench/train.json.

The product runs as a user runs it, the whole local stack through HTTP; the others in processes of their own, on the
same images, on the same machine, in turn. Figures are medians over the rounds. Nothing here fails for being slow.
"""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from services.contracts.backbones import BackboneName
from tests.benchmarks.report import Finding, as_json, as_markdown
from tests.benchmarks.train.bench import Bench, Pair, Setting
from tests.benchmarks.train.fine_tuning import FineTuningPair
from tests.benchmarks.train.growth import GrowthPair
from tests.benchmarks.train.head import HeadPair
from tests.benchmarks.train.limits import LimitsPair
from tests.benchmarks.train.product import running_product
from tests.benchmarks.train.retrain import RetrainPair
from tests.benchmarks.train.search import SearchPair
from tests.servers.data import shared_data

PAIRS: dict[str, Callable[[Bench], Pair]] = {
    "head": HeadPair,
    "retrain": RetrainPair,
    "search": SearchPair,
    "fine_tuning": FineTuningPair,
    "limits": LimitsPair,
    "growth": GrowthPair,
}
"""In the order of each round: `retrain` and `search` find the features of the job before them, the others drop
them."""
OUTPUT = Path("build/bench/train.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs it; returns the exit status."""
    setting, names, output = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # everything comes down as orderly as after Ctrl-C
    with tempfile.TemporaryDirectory(prefix="rekindle-bench-") as name:
        folder = Path(name)
        with running_product(folder / "home", setting.backbone, setting.weights) as product:
            bench = Bench(setting, folder, product)
            findings = run(bench, names)
        described = describe(bench)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(as_json(described, findings), indent=2) + "\n")
    print(f"\n{as_markdown(described, findings)}\n\nthe report is in {output}")
    return 0


def run(bench: Bench, names: Sequence[str]) -> dict[str, Finding]:
    """All rounds of the pairs, one pair after the other in each."""
    pairs = {name: PAIRS[name](bench) for name in PAIRS if name in names}
    began_s = time.monotonic()
    bench.begin()
    print(f"the stack's first job: {time.monotonic() - began_s:.0f} s", flush=True)
    for number in range(bench.setting.rounds):
        for name, pair in pairs.items():
            began_s = time.monotonic()
            pair.measure(number)
            print(f"round {number + 1}, {name}: {time.monotonic() - began_s:.0f} s", flush=True)
    return {name: pair.finding() for name, pair in pairs.items()}


def describe(bench: Bench) -> dict[str, str | int]:
    """What the figures hold for."""
    images, setting = bench.images, bench.setting
    kind = "crops of originals, scaled to 500 x 375 pixels" if images.made else "originals as they are"
    return {
        "images": f"{images.train_count} to train on and {images.test_count} to test on, {kind}",
        "classes": images.label_count,
        "backbone": setting.backbone.value,
        "weights": setting.weights.name,
        "rounds": setting.rounds,
        "cores": os.cpu_count() or 1,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "load_average_at_the_end": f"{os.getloadavg()[0]:.1f}",
    }


def parse(arguments: Sequence[str] | None) -> tuple[Setting, list[str], Path]:
    """Options from the command line. Empty ones, as make passes them, count as not given."""
    parser = argparse.ArgumentParser(prog="make bench-train", description=__doc__)
    parser.add_argument("--images", default="", help="folder with train/ and test/, or a folder of such folders")
    parser.add_argument("--weights", default="", help="Keras .h5 file of the backbone")
    parser.add_argument("--backbone", type=BackboneName, default=BackboneName.MOBILENET_V2)
    parser.add_argument("--pairs", default=",".join(PAIRS), help="separated by commas")
    parser.add_argument("--images-count", type=int, default=1000, help="a fifth of them to test on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keras-epochs", type=int, default=10, help="measured in each round, 2 or more")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--growth", default="500,2000,8000", help="numbers of images, separated by commas")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args(arguments)
    names = given.pairs.split(",")
    if unknown := set(names) - PAIRS.keys():
        parser.error(f"there is no pair {', '.join(sorted(unknown))}: use {', '.join(PAIRS)}")
    if given.keras_epochs < 2 or given.rounds < 1:
        parser.error("--keras-epochs must be 2 or more and --rounds 1 or more")
    data = shared_data()
    weights = data / "weights" / "mobilenet_v2_1.0_224" / "mobilenet_v2_1.0_224_from_int8.h5"
    setting = Setting(
        images=Path(given.images or data / "datasets").absolute(),
        weights=Path(given.weights or weights).absolute(),
        backbone=given.backbone,
        image_count=given.images_count,
        rounds=given.rounds,
        keras_epochs=given.keras_epochs,
        seeds=tuple(given.seeds),
        growth=tuple(sorted(int(count) for count in given.growth.split(","))),
    )
    return setting, names, given.output


if __name__ == "__main__":
    sys.exit(main())
