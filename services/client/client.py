"""`Rekindle`: all calls, grouped by what they are about."""

from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from services.client.batch_predictions import BatchPredictions
from services.client.datasets import Datasets
from services.client.explanations import ExplainedPicture, explain, explain_picture
from services.client.health import ServerHealth, health, readiness
from services.client.models import Models
from services.client.prediction_stream import StreamedImage, predict_each
from services.client.predictions import predict
from services.client.training_jobs import TrainingJobs
from services.client.transport import Patience, Transport
from services.contracts.explanations import Explanation
from services.contracts.health import Readiness
from services.contracts.predictions import PredictResponse

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_PATIENCE_S = 60.0


class Rekindle:
    """A client of one server. Safe for use from several threads; close it, or use it as a context manager.

    Every method raises `ApiError` for a problem and `Unreachable` where no server answers. What can be repeated is,
    with backoff, for `patience_s` seconds; nothing is done twice.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        patience_s: float = DEFAULT_PATIENCE_S,
        http: httpx2.BaseTransport | None = None,
    ) -> None:
        """`timeout_s` bounds every wait for the server; `http` stands in for the network in tests."""
        self._transport = Transport(
            base_url, api_key=api_key, timeout_s=timeout_s, patience=Patience(patience_s), http=http
        )
        self.datasets = Datasets(self._transport)
        self.training_jobs = TrainingJobs(self._transport)
        self.models = Models(self._transport)
        self.batch_predictions = BatchPredictions(self._transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def health(self) -> ServerHealth:
        """That the server answers, how soon, and its release."""
        return health(self._transport)

    def readiness(self) -> Readiness:
        """What the server reaches. An `ApiError` with `details["failed"]` where it reaches too little for requests."""
        return readiness(self._transport)

    def predict(
        self,
        model: str,
        images: Sequence[Path | str | bytes] | Path | str | bytes,
        *,
        top_k: int | None = None,
        version: int | None = None,
        alias: str | None = None,
    ) -> PredictResponse:
        """Labels images.

        Args:
            images: One or several: paths of files, `s3://…` URIs (all of them, or none), or encoded images.
            version: A version of the model; by default its newest.
            alias: An alias instead of a version.

        Raises:
            OSError: a file cannot be read.
        """
        several = [images] if isinstance(images, (Path, str, bytes)) else images
        return predict(self._transport, model, several, top_k=top_k, version=version, alias=alias)

    def predict_each(
        self,
        model: str,
        images: Sequence[Path | str | bytes],
        *,
        top_k: int | None = None,
        version: int | None = None,
        alias: str | None = None,
    ) -> Generator[StreamedImage, None, None]:
        """Labels images like `predict`, and gives each as soon as it is ready, in whatever order.

        Every image comes once. Where the answer breaks off, the images that are missing are asked for again, of the
        same version. An image that cannot be used comes as an `ImageFailed`, also where it is the only one. Closing
        the generator stops the work.

        Raises:
            OSError: a file cannot be read.
        """
        return predict_each(self._transport, model, images, top_k=top_k, version=version, alias=alias)

    def explain(
        self,
        model: str,
        image: Path | str | bytes,
        *,
        label: str | None = None,
        version: int | None = None,
        alias: str | None = None,
    ) -> Explanation:
        """Where in one image the evidence for a label lies, as an array.

        Args:
            image: The path of a file, an `s3://…` URI, or an encoded image.
            label: One of the model's labels; by default the most probable one.
            version: A version of the model; by default its newest.
            alias: An alias instead of a version.

        Raises:
            OSError: the file cannot be read.
        """
        return explain(self._transport, model, image, label=label, version=version, alias=alias)

    def explain_picture(
        self,
        model: str,
        image: Path | str | bytes,
        *,
        label: str | None = None,
        version: int | None = None,
        alias: str | None = None,
    ) -> ExplainedPicture:
        """As `explain`, drawn over the image."""
        return explain_picture(self._transport, model, image, label=label, version=version, alias=alias)
