"""Serving a Keras model as people write it today: `python -m tests.benchmarks.serve.rivals NAME PORT …`.

All have the same network and decode with Pillow; `POST /predict` takes an encoded image and answers a probability for
each class.
"""

import argparse
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from services.contracts.backbones import BACKBONES, BackboneName
from services.local.ports import free_ports
from services.local.processes import end_processes
from tests.benchmarks.serve.load import Load, run

START_WITHIN_S = 180.0
STOP_WITHIN_S = 30.0
CLASSES = 10
FORM_FIELD = "image"
"""LitServe takes files in forms only."""
BATCH = 8
BATCH_WAIT_S = 0.005


@dataclass(frozen=True, slots=True)
class Rival:
    """A running server."""

    url: str
    form_field: str | None
    """Of the image; null where it is the body."""


class KerasClassifier:
    """The network that all of them serve."""

    def __init__(self, backbone: BackboneName, weights: Path) -> None:
        import keras

        from tests.benchmarks.train.keras_baseline import build_base

        self._size = BACKBONES[backbone].default_image_size
        base = build_base(backbone, weights, self._size)
        self.model = keras.Model(base.input, keras.layers.Dense(CLASSES, activation="softmax")(base.output))

    def decode(self, data: bytes) -> Any:
        """float32 [size, size, 3]."""
        import numpy as np
        from PIL import Image

        image = Image.open(io.BytesIO(data)).convert("RGB").resize((self._size, self._size), Image.Resampling.BILINEAR)
        return np.asarray(image, np.float32)

    def predict_one(self, data: bytes) -> list[float]:
        """As in every tutorial: `predict` on a batch of one."""
        return self.model.predict(self.decode(data)[None], verbose=0)[0].tolist()

    def predict_batch(self, images: Sequence[Any]) -> list[list[float]]:
        """Of decoded images, in one call."""
        import numpy as np

        return self.model.predict_on_batch(np.stack(images)).tolist()


def serve_fastapi(port: int, backbone: BackboneName, weights: Path) -> None:
    """FastAPI, with `predict` in its thread pool."""
    import uvicorn
    from fastapi import FastAPI, Request
    from starlette.concurrency import run_in_threadpool

    classifier = KerasClassifier(backbone, weights)
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, list[float]]:
        return {"probabilities": await run_in_threadpool(classifier.predict_one, await request.body())}

    del predict  # the decorator has registered it
    uvicorn.run(app, port=port, log_level="warning")


def serve_litserve(port: int, backbone: BackboneName, weights: Path) -> None:
    """LitServe with its dynamic batching."""
    from tests.benchmarks.serve import lit

    lit.serve(port, backbone, weights)


def serve_ray(port: int, backbone: BackboneName, weights: Path) -> None:
    """A FastAPI ingress on Ray Serve, with `serve.batch`."""
    import ray
    from fastapi import FastAPI, Request
    from ray import serve

    app = FastAPI()

    @serve.deployment(max_ongoing_requests=64)
    @serve.ingress(app)
    class Ingress:
        def __init__(self) -> None:
            self._classifier = KerasClassifier(backbone, weights)

        @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
        async def _batch(self, bodies: list[bytes]) -> list[list[float]]:
            return self._classifier.predict_batch([self._classifier.decode(body) for body in bodies])

        @app.post("/predict")
        async def predict(self, request: Request) -> dict[str, list[float]]:
            return {"probabilities": await self._batch(await request.body())}

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Ingress.bind(), blocking=True)


RIVALS = {"fastapi_keras": serve_fastapi, "litserve": serve_litserve, "ray_serve_keras": serve_ray}


@contextmanager
def running(name: str, backbone: BackboneName, weights: Path, log: Path, image: Path) -> Iterator[Rival]:
    """The server in a process of its own, which has answered."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tests.benchmarks.serve.rivals", name, str(port), backbone, str(weights)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline_s = time.monotonic() + START_WITHIN_S
        form_field = FORM_FIELD if name == "litserve" else None
        while not _answers(url, image, form_field):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{name} did not start: {log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield Rival(url, form_field)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that it started: LitServe's workers outlive it, and would go on beside what is measured next."""
    with suppress(psutil.NoSuchProcess):
        server = psutil.Process(process.pid)
        end_processes([server, *server.children(recursive=True)], STOP_WITHIN_S)
    process.wait()


def _answers(url: str, image: Path, form_field: str | None) -> bool:
    load = Load(url, ["/predict"], [str(image)], clients=1, seconds=0, form_field=form_field, once=True)
    return run(load).answered == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RIVALS)
    parser.add_argument("port", type=int)
    parser.add_argument("backbone", type=BackboneName)
    parser.add_argument("weights", type=Path)
    given = parser.parse_args()
    RIVALS[given.name](given.port, given.backbone, given.weights)


if __name__ == "__main__":
    main()
