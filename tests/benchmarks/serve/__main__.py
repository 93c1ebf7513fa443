"""`make bench-serve`: predictions over HTTP against other ways to serve them, in one run, into build/bench/serve.json.

The product is the whole local stack, asked through its gateway; the others are Keras models behind FastAPI, LitServe
and Ray Serve. All get the same JPEGs from the same client on the same cores, in turn; figures are medians over the
rounds. Then the product serves 1 to 10,000 models. Nothing here fails for being slow.
"""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from services.contracts.backbones import BackboneName
from tests.benchmarks.report import as_json, as_markdown
from tests.benchmarks.serve.bench import Setting, measure
from tests.servers.data import shared_data

OUTPUT = Path("build/bench/serve.json")
COUNTS = (1, 100, 1000, 10000)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs it; returns the exit status."""
    setting, output = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # everything comes down as orderly as after Ctrl-C
    with tempfile.TemporaryDirectory(prefix="rekindle-bench-") as name:
        findings = measure(setting, Path(name))
    described = {
        **{key: str(value) for key, value in asdict(setting).items()},
        "cores": os.cpu_count() or 1,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "load_average_at_the_end": f"{os.getloadavg()[0]:.1f}",
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(as_json(described, findings), indent=2) + "\n")
    print(f"\n{as_markdown(described, findings)}\n\nthe report is in {output}")
    return 0


def parse(arguments: Sequence[str] | None) -> tuple[Setting, Path]:
    """Options from the command line. Empty ones, as make passes them, count as not given."""
    parser = argparse.ArgumentParser(prog="make bench-serve", description=__doc__)
    parser.add_argument("--images", default="", help="folder with train/ and test/, or a folder of such folders")
    parser.add_argument("--weights", default="", help="Keras .h5 file of the backbone")
    parser.add_argument("--backbone", type=BackboneName, default=BackboneName.MOBILENET_V2)
    parser.add_argument("--rivals", default="fastapi_keras,litserve,ray_serve_keras", help="separated by commas")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--models", type=int, default=max(COUNTS), help="how many are served at most")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args(arguments)
    data = shared_data()
    weights = data / "weights" / "mobilenet_v2_1.0_224" / "mobilenet_v2_1.0_224_from_int8.h5"
    setting = Setting(
        images=Path(given.images or data / "datasets").absolute(),
        weights=Path(given.weights or weights).absolute(),
        backbone=given.backbone,
        rivals=tuple(name for name in given.rivals.split(",") if name),
        rounds=given.rounds,
        seconds=given.seconds,
        counts=tuple(sorted({*(count for count in COUNTS if count < given.models), given.models})),
    )
    return setting, given.output


if __name__ == "__main__":
    sys.exit(main())
