"""Predictions."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from services.client.models import model_path
from services.client.transport import Transport
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
    path, query = f"{model_path(model)}/predict", {"top_k": top_k, "version": version, "alias": alias}
    uris = [image for image in images if isinstance(image, str) and image.startswith("s3://")]
    if uris:
        if len(uris) < len(images):
            raise ValueError("s3:// URIs and local files cannot be mixed in one request: make two")
        body = PredictByUri(images=[ImageUri(uri=uri) for uri in uris])
        return transport.call(_RESPONSE, "POST", path, query=query, body=body)
    files = [(FIELD, (_name(image, n), _content(image), "application/octet-stream")) for n, image in enumerate(images)]
    return transport.call(_RESPONSE, "POST", path, query=query, files=files)


def _name(image: Path | str | bytes, number: int) -> str:
    return f"image-{number}" if isinstance(image, bytes) else Path(image).name


def _content(image: Path | str | bytes) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()
