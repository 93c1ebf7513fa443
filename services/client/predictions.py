"""Predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from pydantic import TypeAdapter

from services.client.models import model_path
from services.client.transport import Files, Transport
from services.contracts.predictions import ImageUri, PredictByUri, PredictResponse

_RESPONSE = TypeAdapter(PredictResponse)
FIELD = "images"


def predict(
    transport: Transport,
    model: str,
    images: Sequence[Path | str | bytes],
    *,
    top_k: int | None,
    version: int | None,
    alias: str | None,
) -> PredictResponse:
    """Labels images; see `Rekindle.predict`.

    Raises:
        ValueError: URIs and files in one request.
    """
    query = {"top_k": top_k, "version": version, "alias": alias}
    return transport.call(_RESPONSE, "POST", predict_path(model), query=query, **body_of(list(enumerate(images))))


class Body(TypedDict, total=False):
    """One of the two forms in which images are sent."""

    body: PredictByUri
    files: Files


def predict_path(model: str) -> str:
    return f"{model_path(model)}/predict"


def body_of(images: Sequence[tuple[int, Path | str | bytes]]) -> Body:
    """A request's body for images and their numbers, which name those without a name of their own.

    Raises:
        ValueError: URIs and files in one request.
        OSError: a file cannot be read.
    """
    uris = [image for _, image in images if isinstance(image, str) and image.startswith("s3://")]
    if not uris:
        parts = ((_name(image, number), _content(image), "application/octet-stream") for number, image in images)
        return {"files": [(FIELD, part) for part in parts]}
    if len(uris) < len(images):
        raise ValueError("s3:// URIs and local files cannot be mixed in one request: make two")
    return {"body": PredictByUri(images=[ImageUri(uri=uri) for uri in uris])}


def _name(image: Path | str | bytes, number: int) -> str:
    return f"image-{number}" if isinstance(image, bytes) else Path(image).name


def _content(image: Path | str | bytes) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()
