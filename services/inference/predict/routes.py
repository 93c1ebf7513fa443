"""`POST /v1/models/{model_name}/predict`."""

from contextlib import AsyncExitStack
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import TypeAdapter

from services.contracts.base import ResourceName
from services.contracts.predictions import (
    MAX_TOP_K,
    NDJSON,
    PredictByUri,
    Prediction,
    PredictResponse,
    StreamedFailed,
    StreamedPredicted,
    StreamEnded,
    StreamLine,
    StreamStarted,
)
from services.inference.asking import ERRORS, Alias, Version, choice_of
from services.inference.context import InferenceContext
from services.inference.predict.admission import PATH
from services.inference.predict.inputs import ENVELOPE_BYTES, FORM_FIELD, images_of
from services.inference.predict.streaming import StreamedAnswer, wants_stream
from services.runtime.auth import Principal, Scope, require
from services.runtime.disconnect import unless_client_leaves
from services.runtime.problems import problem_responses, request_id_of
from services.runtime.settings import Settings

TAG = ("predictions", "Labels for images, by any published version.")


def _inline(contract: TypeAdapter[Any]) -> dict[str, Any]:
    """The contract's schema without references: the document has no components for it."""
    schema = contract.json_schema(mode="serialization")
    definitions: dict[str, Any] = schema.pop("$defs")

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            node = cast("dict[str, Any]", value)
            name = str(node.get("$ref", "")).removeprefix("#/$defs/")
            if name:
                return resolved(definitions[name])
            return {key: resolved(item) for key, item in node.items() if key != "discriminator"}
        return [resolved(item) for item in cast("list[Any]", value)] if isinstance(value, list) else value

    return resolved(schema)


_FILE: dict[str, Any] = {"type": "string", "format": "binary"}
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "description": f"One or many images as files named `{FORM_FIELD}`, one image as the body, or images by their URIs.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FORM_FIELD],
                "properties": {FORM_FIELD: {"type": "array", "minItems": 1, "items": _FILE}},
            },
            "examples": {
                "files": {
                    "summary": "Two files",
                    "description": "`curl -F images=@one.jpg -F images=@two.jpg …`",
                    "value": {FORM_FIELD: ["<bytes of one.jpg>", "<bytes of two.jpg>"]},
                }
            },
        },
        "application/json": {
            "schema": _inline(TypeAdapter(PredictByUri)),
            "examples": {
                "uris": {
                    "summary": "Images in S3",
                    "value": {"images": [{"uri": "s3://my-bucket/incoming/1.jpg"}, {"uri": "s3://my-bucket/2.jpg"}]},
                }
            },
        },
        # Any image/* is taken as well; generators of clients do not know ranges of media types.
        "application/octet-stream": {
            "schema": _FILE,
            "examples": {
                "body": {
                    "summary": "One image as the body",
                    "description": "`curl -H 'Content-Type: image/jpeg' --data-binary @one.jpg …`",
                    "value": "<bytes of one.jpg>",
                }
            },
        },
    },
}

_STREAM: dict[str, Any] = {
    "description": "Successful Response",
    "content": {
        NDJSON: {
            "schema": {"description": "One line."} | _inline(TypeAdapter(StreamLine)),
            "examples": {
                "lines": {
                    "summary": "Two images, the second ready first",
                    "value": "".join(
                        line.model_dump_json() + "\n"
                        for line in (
                            StreamStarted(model_name="flowers", version=3, image_count=2),
                            StreamedFailed(index=1, image="2.jpg", code="image_rejected", message="not an image"),
                            StreamedPredicted(
                                index=0,
                                image="1.jpg",
                                predictions=[Prediction(label="rose", probability=0.75, index=1)],
                            ),
                            StreamEnded(failed_count=1),
                        )
                    ),
                }
            },
        }
    },
}


def build_router(settings: Settings) -> APIRouter:
    """The route, with the body limit that the settings give."""
    router = APIRouter(tags=[TAG[0]])

    @router.post(
        PATH,
        summary="Predict labels for images",
        max_body_size=settings.max_upload_bytes + ENVELOPE_BYTES,
        openapi_extra={"requestBody": _REQUEST_BODY},
        response_model=PredictResponse,
        responses={200: _STREAM} | problem_responses(*ERRORS),
    )
    async def predict(
        request: Request,
        context: InferenceContext,
        _principal: Annotated[Principal, Depends(require(Scope.PREDICT))],
        model_name: Annotated[ResourceName, Path(examples=["flowers"])],
        version: Version = None,
        alias: Alias = None,
        top_k: Annotated[int, Query(ge=1, le=MAX_TOP_K, description="Labels per image, most probable first.")] = 5,
    ) -> PredictResponse | Response:
        """Labels for one or many images, in the order they were sent.

        Of several images, those that cannot be used are answered with `"status": "error"` among the others; where the
        only image cannot be used, the whole answer is a problem. The model `base` is the pretrained classifier itself.

        One version answers a whole request, and the answer names it. Where `alias` is split between two, the request's
        id chooses: it is random, unless the client sends `X-Request-ID`, and the same id gets the same version.

        While a model is being loaded the request is held; after the server's deadline it is answered with 503
        `model_loading` and `Retry-After`. Where as many images wait as may, the answer is 503 `overloaded`, before the
        images are read.

        With `Accept: application/x-ndjson` the answer is a stream of lines, each a JSON object with a `type`: `start`,
        then an `image` for each image as soon as it is ready (`index` is its place in the request), then `end`. Images
        that cannot be used are lines like the others. What concerns the whole request is an ordinary problem before
        the first line, and a last line of the type `problem` after it; a stream without one of these two last lines
        was cut off.

        Closing the connection stops the work.
        """
        choice, request_id = choice_of(model_name, version, alias), request_id_of(request) or ""
        async with AsyncExitStack() as held:
            images = await held.enter_async_context(images_of(request, context.settings, context.fetches))
            if wants_stream(request.headers.get("accept", "")):
                lines = context.predictor.stream(choice, images, top_k, request_id)
                return StreamedAnswer(request, lines, held.pop_all())
            answering = context.predictor.predict(choice, images, top_k, request_id)
            return await unless_client_leaves(request.receive, answering)

    del predict  # the decorator has registered it
    return router
