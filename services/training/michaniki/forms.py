"""The forms of Michaniki's calls. Fields that a form does not know are ignored, as they were."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from services.contracts.michaniki import MichanikiModelName, model_name_of
from services.contracts.models import BASE_MODEL

BucketName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9._-]{3,255}$", description="Of a bucket in S3.", examples=["my-bucket"]),
]


def _prefix(value: str) -> str:
    stripped = value.strip("/")
    if not stripped:
        raise ValueError("the prefix is empty: name a folder of the bucket")
    return stripped


def _models_prefix(value: str) -> str:
    if model_name_of(_last(value)) == BASE_MODEL:
        raise ValueError(f"the model {BASE_MODEL!r} is the pretrained classifier: give the folder another name")
    return value


def _last(prefix: str) -> str:
    return prefix.rpartition("/")[2]


Prefix = Annotated[str, Field(max_length=700), AfterValidator(_prefix)]
ModelPrefix = Annotated[
    Prefix,
    AfterValidator(_models_prefix),
    Field(
        description="Where the images are, in `train` and `val` with a folder per class in each. The last folder's "
        "name is the model's.",
        examples=["models/sharkVsalmon"],
    ),
]


class MichanikiTransferForm(BaseModel):
    """Images to make a model of."""

    train_bucket_name: BucketName
    train_bucket_prefix: ModelPrefix

    @property
    def uri(self) -> str:
        """Where the images are."""
        return f"s3://{self.train_bucket_name}/{self.train_bucket_prefix}/"

    @property
    def model_name(self) -> str:
        """The model that the prefix names."""
        return model_name_of(_last(self.train_bucket_prefix))


class MichanikiRetrainForm(MichanikiTransferForm):
    """Images to train a model again on."""

    nb_epoch: int | None = Field(
        default=None, ge=1, description="Without effect: the head is trained until it has converged."
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="Without effect: a step of training a head takes all images."
    )


class MichanikiLabelForm(BaseModel):
    """Images to label."""

    s3_bucket_name: BucketName
    s3_bucket_prefix: Annotated[
        Prefix, Field(description="Where the images are, at any depth.", examples=["incoming/monday"])
    ]
    model_name: MichanikiModelName

    @property
    def uri(self) -> str:
        """Where the images are."""
        return f"s3://{self.s3_bucket_name}/{self.s3_bucket_prefix}/"
