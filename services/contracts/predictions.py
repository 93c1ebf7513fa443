"""Predictions, as clients ask for them and get them."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from services.contracts.base import Contract

MAX_TOP_K = 1000
"""Most labels that are asked for per image."""


class ImageUri(Contract):
    """An image in a bucket that the operator allows."""

    uri: str = Field(min_length=1, max_length=1024, examples=["s3://my-bucket/incoming/1.jpg"])


class PredictByUri(Contract):
    """Predict for images that are in S3 already."""

    images: Annotated[list[ImageUri], Field(min_length=1, max_length=64)]


class Prediction(Contract):
    label: str
    probability: float = Field(ge=0, le=1)
    index: int = Field(description="The label's place in the model's class order.")


class ImagePredicted(Contract):
    status: Literal["ok"] = "ok"
    image: str = Field(description="File name or URI as it was sent.")
    predictions: list[Prediction] = Field(description="Most probable first.")


class ImageFailed(Contract):
    """One image that could not be used; the others of the request are answered."""

    status: Literal["error"] = "error"
    image: str
    code: str
    message: str


ImageResult = Annotated[ImagePredicted | ImageFailed, Field(discriminator="status")]


class PredictResponse(Contract):
    model_name: str
    version: int
    results: list[ImageResult] = Field(description="In the order of the request's images.")


# --- a streamed answer: one of these on each line of NDJSON ---

NDJSON = "application/x-ndjson"


class StreamStarted(Contract):
    """The first line. It comes once the first image is ready: what fails before that is an ordinary problem."""

    type: Literal["start"] = "start"
    model_name: str
    version: int
    image_count: int = Field(description="Lines of the type `image` to expect.")


class StreamedPredicted(ImagePredicted):
    """An image that was labelled."""

    type: Literal["image"] = "image"
    index: int = Field(ge=0, description="The image's place in the request, from 0.")


class StreamedFailed(ImageFailed):
    """An image that could not be used, also where it is the only one."""

    type: Literal["image"] = "image"
    index: int = Field(ge=0, description="The image's place in the request, from 0.")


class StreamEnded(Contract):
    """The last line of an answer that is whole."""

    type: Literal["end"] = "end"
    failed_count: int = Field(description="Images that could not be used.")


class StreamBroken(Contract):
    """The last line of an answer that is not whole: something that concerns every image that is missing."""

    type: Literal["problem"] = "problem"
    problem: dict[str, JsonValue] = Field(description="RFC 9457 problem details, as other calls answer them.")
    retry_after_s: int | None = Field(description="When to ask for the missing images again; null: it may not help.")


StreamedResult = Annotated[StreamedPredicted | StreamedFailed, Field(discriminator="status")]
StreamLine = Annotated[
    StreamStarted | StreamedResult | StreamEnded | StreamBroken,
    Field(discriminator="type"),
]
