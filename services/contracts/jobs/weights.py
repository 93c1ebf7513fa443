"""Where a backbone's pretrained weights come from."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from services.contracts.base import Contract, Sha256, stored


class WeightsUri(Contract):
    """Pretrained weights in a file: a Keras `.h5` or `.weights.h5` of the backbone, with or without its top."""

    uri: str = Field(
        min_length=1,
        max_length=1024,
        examples=["s3://my-bucket/weights/mobilenet_v2.h5"],
        description="`s3://…`, or `file://…` where the operator allows local paths.",
    )
    sha256: Sha256 | None = Field(default=None, description="Checked after reading; null trusts the URI.")


Weights = Literal["imagenet", "bundled"] | WeightsUri
StoredWeights = Annotated[Weights, stored(TypeAdapter(Weights))]
"""`Weights` as a stored record has them: fields of a newer release are ignored."""
