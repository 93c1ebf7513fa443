"""`POST /v1/models/{model_name}/predict`."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.exceptions import RequestValidationError

from services.contracts.base import ResourceName
from services.contracts.errors import (
    CallerError,
    DatabaseUnavailable,
    ImageRejected,
    ModelLoading,
    NotFound,
    ObjectStoreUnavailable,
    Overloaded,
    PayloadTooLarge,
    SourceNotAllowed,
    SourceUnreadable,
    UnsupportedMediaType,
)
from services.contracts.predictions import MAX_TOP_K, PredictByUri, PredictResponse
from services.inference.context import InferenceContext
from services.inference.predict.inputs import ENVELOPE_BYTES, FORM_FIELD, images_of
from services.inference.predict.queries import VersionChoice
from services.runtime.auth import Principal, Scope, require
from services.runtime.problems import problem_responses
from services.runtime.settings import Settings

TAG = ("predictions", "Labels for images, by any published version.")


def _uris_schema() -> dict[str, Any]:
    """`PredictByUri` without references: the document has no component of that name."""
    schema = PredictByUri.model_json_schema()
    schema["properties"]["images"]["items"] = schema.pop("$defs")["ImageUri"]
    return schema


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
            "schema": _uris_schema(),
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


def build_router(settings: Settings) -> APIRouter:
    """The route, with the body limit that the settings give."""
    router = APIRouter(tags=[TAG[0]])

    @router.post(
        "/v1/models/{model_name}/predict",
        summary="Predict labels for images",
        max_body_size=settings.max_upload_bytes + ENVELOPE_BYTES,
        openapi_extra={"requestBody": _REQUEST_BODY},
        responses=problem_responses(
            CallerError,
            NotFound,
            PayloadTooLarge,
            UnsupportedMediaType,
            ImageRejected,
            SourceNotAllowed,
            SourceUnreadable,
            ModelLoading,
            Overloaded,
            ObjectStoreUnavailable,
            DatabaseUnavailable,
        ),
    )
    async def predict(
        request: Request,
        context: InferenceContext,
        _principal: Annotated[Principal, Depends(require(Scope.PREDICT))],
        model_name: Annotated[ResourceName, Path(examples=["flowers"])],
        version: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="Default: the latest version.")] = None,
        alias: Annotated[ResourceName | None, Query(description="Instead of `version`.")] = None,
        top_k: Annotated[int, Query(ge=1, le=MAX_TOP_K, description="Labels per image, most probable first.")] = 5,
    ) -> PredictResponse:
        """Labels for one or many images, in the order they were sent.

        Of several images, those that cannot be used are answered with `"status": "error"` among the others; where the
        only image cannot be used, the whole answer is a problem. The model `base` is the pretrained classifier itself.

        While a model is being loaded the request is held; after the server's deadline it is answered with 503
        `model_loading` and `Retry-After`.
        """
        if version is not None and alias is not None:
            raise RequestValidationError(
                [{"type": "value_error", "loc": ("query", "alias"), "msg": "give `version` or `alias`, not both"}]
            )
        async with images_of(request, context.settings, context.fetches) as images:
            return await context.predictor.predict(VersionChoice(model_name, version, alias), images, top_k)

    del predict  # the decorator has registered it
    return router
