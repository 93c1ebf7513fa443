"""`POST /v1/models/{model_name}/explain`."""

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from services.contracts.base import ResourceName
from services.contracts.errors import LabelUnknown
from services.contracts.explanations import (
    LABEL_HEADER,
    PNG,
    PROBABILITY_HEADER,
    VERSION_HEADER,
    Explanation,
    ExplanationFormat,
)
from services.inference.accept import prefers
from services.inference.asking import ERRORS, Alias, Version, choice_of, invalid
from services.inference.context import InferenceContext
from services.inference.explain.operations import as_array
from services.inference.predict.inputs import ENVELOPE_BYTES, FORM_FIELD, images_of
from services.inference.predict.routes import TAG
from services.inference.replica_answers import ExplainedMap
from services.runtime.auth import Principal, Scope, require
from services.runtime.disconnect import unless_client_leaves
from services.runtime.problems import problem_responses, request_id_of
from services.runtime.settings import Settings

MAX_LABEL_LENGTH = 1024

_FILE: dict[str, Any] = {"type": "string", "format": "binary"}


def _one(items: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with a list of one image."""
    field = {"type": "array", "minItems": 1, "maxItems": 1, "items": items}
    return {"type": "object", "required": [FORM_FIELD], "properties": {FORM_FIELD: field}}


_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "description": f"One image: as the body, as a file named `{FORM_FIELD}`, or by its URI.",
    "content": {
        "multipart/form-data": {"schema": _one(_FILE)},
        "application/json": {
            "schema": _one({"type": "object", "required": ["uri"], "properties": {"uri": {"type": "string"}}}),
            "examples": {
                "uri": {"summary": "An image in S3", "value": {"images": [{"uri": "s3://my-bucket/incoming/1.jpg"}]}}
            },
        },
        # Any image/* is taken as well; generators of clients do not know ranges of media types.
        "application/octet-stream": {"schema": _FILE},
    },
}
_PICTURE: dict[str, Any] = {
    "description": "Successful Response",
    "content": {PNG: {"schema": _FILE}},
    "headers": {
        VERSION_HEADER: {"description": f"With `{PNG}`: the version that answered.", "schema": {"type": "integer"}},
        LABEL_HEADER: {
            "description": f"With `{PNG}`: the label that is explained, percent-encoded UTF-8.",
            "schema": {"type": "string"},
        },
        PROBABILITY_HEADER: {
            "description": f"With `{PNG}`: that the image has the label, 0 to 1.",
            "schema": {"type": "number"},
        },
    },
}


def build_router(settings: Settings) -> APIRouter:
    """The route, with the body limit that the settings give."""
    router = APIRouter(tags=[TAG[0]])

    @router.post(
        "/v1/models/{model_name}/explain",
        summary="Show where in an image the evidence for a label lies",
        max_body_size=settings.max_upload_bytes + ENVELOPE_BYTES,
        openapi_extra={"requestBody": _REQUEST_BODY},
        response_model=Explanation,
        responses={200: _PICTURE} | problem_responses(*ERRORS, LabelUnknown),
    )
    async def explain(
        request: Request,
        context: InferenceContext,
        _principal: Annotated[Principal, Depends(require(Scope.PREDICT))],
        model_name: Annotated[ResourceName, Path(examples=["flowers"])],
        version: Version = None,
        alias: Alias = None,
        label: Annotated[
            str | None, Query(max_length=MAX_LABEL_LENGTH, description="Default: the most probable label.")
        ] = None,
        format: Annotated[
            ExplanationFormat | None, Query(description="Default: by the `Accept` header; `png` where it has neither.")
        ] = None,
    ) -> Explanation | Response:
        """A class activation map: how much each place of one image speaks for a label.

        `png` is the image as it was sent, upright and in its own proportions, reduced to at most 640 pixels a side, in
        greys, and the map over it, yellow to red where there is evidence. Headers have the version, the label and its
        probability. `json` has the map as an array.

        Works for every version, fine-tuned ones and `base` included. Which version answers, limits, deadline and what
        is tried again are as for `predict`. A replica computes one explanation at a time, besides predictions; where
        many wait, the answer is 503 `overloaded` with `Retry-After`.
        """
        choice, request_id = choice_of(model_name, version, alias), request_id_of(request) or ""
        async with images_of(request, context.settings, context.fetches) as images:
            if len(images) != 1:
                raise invalid("body", FORM_FIELD, f"send one image at a time: these are {len(images)}")
            form = format or _accepted(request.headers.get("accept", ""))
            explaining = context.explainer.explain(choice, images[0], label, form, request_id)
            explained = await unless_client_leaves(request.receive, explaining)
        if isinstance(explained.answer, ExplainedMap):
            return as_array(explained, explained.answer)
        prediction = explained.answer.prediction
        headers = {
            VERSION_HEADER: str(explained.served.version),
            LABEL_HEADER: quote(prediction.label, safe=""),
            PROBABILITY_HEADER: f"{prediction.probability:.6f}",
        }
        return Response(explained.answer.png, headers=headers, media_type=PNG)

    del explain  # the decorator has registered it
    return router


def _accepted(accept: str) -> ExplanationFormat:
    return "json" if prefers(accept, "application/json", over=PNG) else "png"
