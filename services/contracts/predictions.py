"""Predictions, as clients ask for them and get them."""

from typing import Annotated, Literal

from pydantic import Field

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
