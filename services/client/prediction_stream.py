"""Predictions as they get ready, without gaps or repeats across broken answers."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx2
from pydantic import TypeAdapter, ValidationError

from services.client.errors import ApiError
from services.client.predictions import body_of, predict_path
from services.client.transport import RETRIED_STATUSES, Query, Transport, problem_in_stream
from services.contracts.predictions import (
    NDJSON,
    ImageFailed,
    ImagePredicted,
    ImageResult,
    StreamBroken,
    StreamedFailed,
    StreamedPredicted,
    StreamEnded,
    StreamLine,
    StreamStarted,
)

_LINE: TypeAdapter[StreamLine] = TypeAdapter(StreamLine)


@dataclass(frozen=True, slots=True)
class StreamedImage:
    """What became of one image."""

    index: int
    """Its place among the images that were asked for, from 0."""
    result: ImageResult
    model_name: str
    version: int


def predict_each(
    transport: Transport,
    model: str,
    images: Sequence[Path | str | bytes],
    *,
    top_k: int | None,
    version: int | None,
    alias: str | None,
) -> Generator[StreamedImage, None, None]:
    """Labels images; see `Rekindle.predict_each`.

    Raises:
        ApiError: the server answered with a problem.
        Unreachable: no answer within the client's patience.
        ValueError: URIs and files in one request.
    """
    patience, failures, last_answer_s = transport.patience, 0, transport.patience.clock()
    missing = dict(enumerate(images))
    while missing:
        query: Query = {"top_k": top_k, "version": version, "alias": alias}
        failures += 1
        try:
            with closing(_one_request(transport, model, list(missing.items()), query)) as answered:
                for image in answered:
                    # The rest by the same version, even if the alias moves meanwhile.
                    version, alias = image.version, None
                    failures, last_answer_s = 0, patience.clock()
                    del missing[image.index]
                    yield image
        except httpx2.TransportError as error:
            if not patience.wait(max(failures, 1), 0, last_answer_s + transport.patience_s):
                raise transport.unreachable(error) from error
        except ApiError as error:
            may_help = error.status in RETRIED_STATUSES
            if not may_help or not patience.wait(
                max(failures, 1), error.retry_after_s, last_answer_s + patience.total_s
            ):
                raise


def _one_request(
    transport: Transport, model: str, images: list[tuple[int, Path | str | bytes]], query: Query
) -> Generator[StreamedImage, None, None]:
    """The images of one answer, with the numbers that `images` gives them.

    Raises `ApiError` for a problem, before the answer or as its last line, and `TransportError` where it is cut off.
    """
    body = body_of(images)
    with transport.stream(
        predict_path(model), method="POST", query=query, headers={"accept": NDJSON}, **body
    ) as response:
        started: StreamStarted | None = None
        waiting = dict(enumerate(number for number, _ in images))
        for text in response.iter_lines():
            try:
                line = _LINE.validate_json(text)
                match line:
                    case StreamStarted():
                        started = line
                    case StreamEnded() if not waiting:
                        return
                    case StreamBroken():
                        raise problem_in_stream(line.problem, line.retry_after_s or 0)
                    case StreamedPredicted() | StreamedFailed() if started is not None:
                        number = waiting.pop(line.index)
                        yield StreamedImage(number, _result(line), started.model_name, started.version)
                    case _:
                        raise transport.unexpected(response.status_code)
            except (ValidationError, KeyError) as error:
                raise transport.unexpected(response.status_code) from error
    raise httpx2.RemoteProtocolError("the answer ended before its last line")


def _result(line: StreamedPredicted | StreamedFailed) -> ImageResult:
    if isinstance(line, StreamedFailed):
        return ImageFailed(image=line.image, code=line.code, message=line.message)
    return ImagePredicted(image=line.image, predictions=line.predictions)
