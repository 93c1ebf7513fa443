"""Explanations: where in an image the evidence for a label lies."""

from typing import Literal

from pydantic import Field

from services.contracts.base import Contract

PNG = "image/png"
ExplanationFormat = Literal["png", "json"]

VERSION_HEADER = "X-Rekindle-Version"
LABEL_HEADER = "X-Rekindle-Label"
"""Percent-encoded UTF-8."""
PROBABILITY_HEADER = "X-Rekindle-Probability"


class Explanation(Contract):
    """The evidence for one label, as an array."""

    model_name: str
    version: int
    image: str = Field(description="File name or URI as it was sent.")
    label: str = Field(description="The label that is explained: the one asked for, else the most probable one.")
    probability: float = Field(ge=0, le=1, description="That the image has the label, as `predict` gives it.")
    index: int = Field(description="The label's place in the model's class order.")
    height: int = Field(description="Rows of the map.")
    width: int = Field(description="Columns of the map.")
    map: list[list[float]] = Field(
        description="Rows from top to bottom, each from left to right: 1 is the place with the most evidence for the "
        "label, 0 one with none, or with evidence against it; all are 0 where no place has any for it. The map covers "
        "the whole image, turned as its EXIF orientation says: row r is the part from r / height to (r + 1) / height "
        "of the image's height, column c likewise. Stretch it over the image to compare."
    )
