"""Builds a trunk in a process of its own: `python -m tests.servers.make_trunk BUCKET BACKBONE SIZE [WEIGHTS]`.

Without a weights file the weights are random, the same each time. Prints the manifest. `make_trunk` calls it.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from services.contracts.backbones import BackboneName
from services.contracts.jobs import WeightsUri
from services.contracts.models import TrunkManifest, TrunkRecipe
from services.runtime.objects import ObjectStore, open_store

TIMEOUT_S = 240


def make_trunk(
    store: ObjectStore, backbone: BackboneName, image_size: int, weights: Path | None, env: dict[str, str]
) -> TrunkManifest:
    """The trunk of these weights, or of random ones; TensorFlow stays out of this process."""
    command = [sys.executable, "-m", "tests.servers.make_trunk", store.uri, backbone.value, str(image_size)]
    command += [weights.as_posix()] if weights else []
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    return TrunkManifest.model_validate_json(done.stdout.splitlines()[-1])


def main() -> None:
    import keras

    from ray_cluster.vision.backbones import build_network
    from ray_cluster.vision.trunk_builder import build_trunk

    bucket_uri, name, size, *given = sys.argv[1:]
    backbone, image_size = BackboneName(name), int(size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(given[0]) if given else Path(folder) / "random.weights.h5"
        if not given:
            keras.utils.set_random_seed(7)
            build_network(backbone, image_size, None).save_weights(path)
        recipe = TrunkRecipe(backbone=backbone, weights=WeightsUri(uri=path.as_uri()), image_size=image_size)
        trunk = build_trunk(open_store(bucket_uri), recipe)
    print(json.dumps(trunk.model_dump(mode="json")))


if __name__ == "__main__":
    main()
