"""`POST /inceptionV3/predict`: Michaniki's prediction, over the operation that answers `/v1/models/{name}/predict`."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import FormData, UploadFile

from services.contracts.errors import (
    CallerError,
    DatabaseUnavailable,
    ImageRejected,
    InternalError,
    ModelLoading,
    NotFound,
    ObjectStoreUnavailable,
    Overloaded,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from services.contracts.michaniki import (
    TAG,
    TOP_K,
    MichanikiModelName,
    MichanikiPredictAnswer,
    MichanikiPredicted,
    MichanikiPrediction,
)
from services.contracts.predictions import ImagePredicted
from services.inference.asking import invalid
from services.inference.context import InferenceContext
from services.inference.predict.inputs import ENVELOPE_BYTES, RAW_NAME, ImageInput, read_form
from services.inference.predict.queries import VersionChoice
from services.runtime.auth import Principal, Scope, require
from services.runtime.disconnect import unless_client_leaves
from services.runtime.problems import problem_responses, request_id_of
from services.runtime.settings import Settings

IMAGE_FIELD = "image"
MODEL_FIELD = "model_name"
_MODEL_NAME: TypeAdapter[str] = TypeAdapter(MichanikiModelName)
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [IMAGE_FIELD, MODEL_FIELD],
                "properties": {
                    IMAGE_FIELD: {"type": "string", "format": "binary"},
                    MODEL_FIELD: {"type": "string", "examples": ["base"]},
                },
            },
        },
    },
}


def build_router(settings: Settings) -> APIRouter:
    """The route, with the body limit that the settings give."""
    router = APIRouter(tags=[TAG[0]], deprecated=True)

    @router.post(
        "/inceptionV3/predict",
        summary="Predict labels for an image",
        max_body_size=settings.max_upload_bytes + ENVELOPE_BYTES,
        openapi_extra={"requestBody": _REQUEST_BODY},
        responses=problem_responses(
            CallerError,
            NotFound,
            PayloadTooLarge,
            UnsupportedMediaType,
            ImageRejected,
            ModelLoading,
            Overloaded,
            ObjectStoreUnavailable,
            DatabaseUnavailable,
        ),
    )
    async def michaniki_predict(
        request: Request,
        context: InferenceContext,
        _principal: Annotated[Principal, Depends(require(Scope.PREDICT))],
    ) -> MichanikiPredictAnswer:
        """The most probable labels of one image by the newest version of a model; `base` is the pretrained classifier.

        Use `POST /v1/models/{model_name}/predict` instead.
        """
        kind = request.headers.get("content-type", "")
        if not kind.lower().startswith("multipart/form-data"):
            raise UnsupportedMediaType(f"content type {kind or 'missing'!r} is not supported: send multipart/form-data")
        form = await read_form(request, context.settings)
        try:
            choice, image = _read(form)
            answering = context.predictor.predict(choice, [image], TOP_K, request_id_of(request) or "")
            answer = await unless_client_leaves(request.receive, answering)
        finally:
            await form.close()
        match answer.results:
            case [ImagePredicted(predictions=predictions)]:
                ranked = [MichanikiPrediction(label=each.label, probability=each.probability) for each in predictions]
            case others:
                raise InternalError(f"one image was asked for, and the answer is {others!r}")
        return MichanikiPredictAnswer(data=MichanikiPredicted(success=True, prediction=ranked))

    del michaniki_predict  # the decorator has registered it
    return router


def _read(form: FormData) -> tuple[VersionChoice, ImageInput]:
    """Of several fields of one name the first counts, as it did; other fields are ignored.

    Raises `RequestValidationError`.
    """
    image, name = (next(iter(form.getlist(field)), None) for field in (IMAGE_FIELD, MODEL_FIELD))
    if not isinstance(image, UploadFile):
        raise invalid("body", IMAGE_FIELD, "send the image as a file, with a file name")
    if not isinstance(name, str):
        raise invalid("body", MODEL_FIELD, "name the model as text, e.g. base")
    try:
        choice = VersionChoice(_MODEL_NAME.validate_python(name))
    except ValidationError as error:
        raise invalid("body", MODEL_FIELD, error.errors()[0]["msg"]) from error
    return choice, ImageInput(image.filename or RAW_NAME, image.read)
