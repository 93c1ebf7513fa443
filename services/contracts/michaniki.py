"""Michaniki's calls: the shapes that clients of the platform before Rekindle expect.

The names are that platform's own, spaces included.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from services.contracts.base import Contract, ResourceName

TAG = (
    "michaniki",
    "Deprecated: the calls of Michaniki, the platform that Rekindle replaces, with their form fields and answers.",
)
TOP_K = 50
"""Labels per image, as many as Michaniki returned."""

_NAME: TypeAdapter[str] = TypeAdapter(ResourceName)


def model_name_of(text: str) -> str:
    """The model that Michaniki's clients call `text`: names have no capital letters any more.

    Raises `ValueError` for a name that no model can have.
    """
    try:
        return _NAME.validate_python(text.lower())
    except ValidationError as error:
        raise ValueError(
            f"{text[:80]!r} can be no model's name: a name has 1 to 64 letters, digits, '.', '_' and '-', and none of "
            "the last three at its ends"
        ) from error


MichanikiModelName = Annotated[
    str,
    AfterValidator(model_name_of),
    Field(description="Capital letters mean the same as small ones.", examples=["sharkVsalmon"]),
]


class MichanikiPrediction(Contract):
    label: str
    probability: float


class MichanikiPredicted(Contract):
    success: bool
    prediction: list[MichanikiPrediction] = Field(description="Most probable first.")


class MichanikiPredictAnswer(Contract):
    """What `/inceptionV3/predict` answers."""

    data: MichanikiPredicted


class MichanikiLabelledImage(Contract):
    image_name: str = Field(serialization_alias="image name", description="Path below the prefix.")
    prediction: list[MichanikiPrediction] = Field(description="Most probable first.")


class MichanikiLabelAnswer(Contract):
    """What `/inceptionV3/label` answers. Files that could not be used are not among them."""

    data: list[MichanikiLabelledImage] = Field(description="In order of paths.")


class MichanikiTaskStarted(Contract):
    """A task was accepted."""

    task_id: str = Field(description="The training job's id, or the batch prediction's.")
    status: str = Field(description="A sentence, always the same.")


class MichanikiState(StrEnum):
    """Celery's names, those that Michaniki's clients ever saw."""

    PENDING = "PENDING"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    REVOKED = "REVOKED"


class MichanikiTask(Contract):
    remote_task_id: str
    status: MichanikiState = Field(description="`PENDING` until it has ended.")
    training_accuracy: float | None = Field(
        default=None,
        serialization_alias="final training accuracy",
        description="0 to 1, of the last epoch; null where no epoch was reported. Only of training that has succeeded.",
    )
    validation_accuracy: float | None = Field(
        default=None,
        serialization_alias="final validation accuracy",
        description="0 to 1, of the published version on its evaluated split. Only of training that has succeeded.",
    )
    state: str = Field(description="The job's own state, e.g. `training`. Not in Michaniki's answers.")
    reason: str = Field(description="Why it is in its state, for people. Not in Michaniki's answers.")


class MichanikiTasks(Contract):
    """What `/tasks/info` answers."""

    tasks: list[MichanikiTask] = Field(serialization_alias="Tasks Status", description="In the request's order.")


class MichanikiCancelled(Contract):
    remote_task_id: str
    status: MichanikiState = Field(description="Always `REVOKED`.")


class MichanikiCancelAnswer(Contract):
    """What `/tasks/cancel` answers."""

    task: MichanikiCancelled = Field(serialization_alias="Tasks Status")
