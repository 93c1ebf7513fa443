"""Explanations: where in an image the evidence for a label lies."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pydantic import TypeAdapter

from services.client.models import model_path
from services.client.predictions import body_of
from services.client.transport import Query, Transport
from services.contracts.explanations import LABEL_HEADER, PROBABILITY_HEADER, VERSION_HEADER, Explanation

_EXPLANATION = TypeAdapter(Explanation)


@dataclass(frozen=True, slots=True)
class ExplainedPicture:
    """An image with a label's heat map laid over it."""

    png: bytes
    """The file's content; upright, in the image's own proportions, at most 640 pixels a side."""
    label: str
    """The one that is explained."""
    probability: float
    """That the image has the label, 0 to 1."""
    version: int


def explain(
    transport: Transport,
    model: str,
    image: Path | str | bytes,
    *,
    label: str | None,
    version: int | None,
    alias: str | None,
) -> Explanation:
    """The heat map as an array; see `Rekindle.explain`."""
    query: Query = {"label": label, "version": version, "alias": alias, "format": "json"}
    return transport.call(_EXPLANATION, "POST", _path(model), query=query, **body_of([(0, image)]))


def explain_picture(
    transport: Transport,
    model: str,
    image: Path | str | bytes,
    *,
    label: str | None,
    version: int | None,
    alias: str | None,
) -> ExplainedPicture:
    """The heat map laid over the image; see `Rekindle.explain_picture`."""
    query: Query = {"label": label, "version": version, "alias": alias, "format": "png"}
    answer = transport.respond("POST", _path(model), query=query, **body_of([(0, image)]))
    try:
        return ExplainedPicture(
            png=answer.content,
            label=unquote(answer.headers[LABEL_HEADER]),
            probability=float(answer.headers[PROBABILITY_HEADER]),
            version=int(answer.headers[VERSION_HEADER]),
        )
    except (KeyError, ValueError) as error:
        raise transport.unexpected(answer.status_code) from error


def _path(model: str) -> str:
    return f"{model_path(model)}/explain"
