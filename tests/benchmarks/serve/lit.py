"""The Keras classifier behind LitServe; its workers import this. LitServe comes with `make bench-serve`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import litserve
from fastapi import Request

from services.contracts.backbones import BackboneName
from tests.benchmarks.serve.rivals import BATCH, BATCH_WAIT_S, FORM_FIELD, KerasClassifier


class KerasApi(litserve.LitAPI):
    """Batches as LitServe's guide recommends."""

    def __init__(self, backbone: BackboneName, weights: Path) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=BATCH_WAIT_S)
        self._backbone, self._weights = backbone, weights

    def setup(self, device: str) -> None:
        self._classifier = KerasClassifier(self._backbone, self._weights)

    def decode_request(self, request: Request) -> Any:
        # LitServe goes by the annotation, and gives the form that came in the request.
        return self._classifier.decode(cast(Any, request)[FORM_FIELD].file.read())

    def predict(self, x: Sequence[Any]) -> list[list[float]]:
        return self._classifier.predict_batch(x)

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        return {"probabilities": output}


def serve(port: int, backbone: BackboneName, weights: Path) -> None:
    """Until the process ends."""
    server = litserve.LitServer(KerasApi(backbone, weights), accelerator="cpu")
    server.run(port=port, generate_client_file=False, log_level="warning")
