"""Models, their versions, and the names (aliases) that point at versions."""

from collections.abc import Iterator
from urllib.parse import quote

from pydantic import TypeAdapter

from services.client.transport import Transport
from services.contracts.aliases import AliasChange, AliasShadow, AliasSplit, AliasTarget, ModelAlias
from services.contracts.models import Model, ModelVersion
from services.contracts.pages import Page

_MODEL = TypeAdapter(Model)
_MODELS = TypeAdapter(Page[Model])
_VERSION = TypeAdapter(ModelVersion)
_ALIAS = TypeAdapter(ModelAlias)
_VERSIONS = TypeAdapter(Page[ModelVersion])


def model_path(model: str) -> str:
    return f"/v1/models/{quote(model, safe='')}"


class Models:
    """Calls on `/v1/models`. All raise `ApiError` and `Unreachable`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[Model]:
        """All models, newest first, page by page."""
        cursor: str | None = None
        while True:
            page = self._transport.call(_MODELS, "GET", "/v1/models", query={"cursor": cursor})
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def get(self, model: str) -> Model:
        return self._transport.call(_MODEL, "GET", model_path(model))

    def versions(self, model: str) -> Iterator[ModelVersion]:
        """All versions, newest first, page by page."""
        cursor: str | None = None
        while True:
            page = self._transport.call(_VERSIONS, "GET", f"{model_path(model)}/versions", query={"cursor": cursor})
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def version(self, model: str, version: int) -> ModelVersion:
        """One version with its evaluation."""
        return self._transport.call(_VERSION, "GET", f"{model_path(model)}/versions/{version}")

    def set_alias(
        self,
        model: str,
        alias: str,
        version: int,
        *,
        split: AliasSplit | None = None,
        shadow: AliasShadow | None = None,
        expected_version: int | None = None,
        expected: AliasTarget | None = None,
    ) -> ModelAlias:
        """Points an alias at a version: promotes, or rolls back. What it pointed at before is replaced as a whole.

        Args:
            split: A second version that answers a share of the requests.
            shadow: A challenger that is scored on the same images and never answers.
            expected_version: Only where it points at this version now, whatever stands beside that (0: where there is
                no such alias); otherwise `ApiError` with the code `conflict`.
            expected: The same for all that it points at; instead of `expected_version`.

        Raises:
            ValidationError: a combination that cannot be.
        """
        body = AliasChange(
            version=version, split=split, shadow=shadow, expected_version=expected_version, expected=expected
        )
        return self._transport.call(_ALIAS, "PUT", f"{model_path(model)}/aliases/{quote(alias, safe='')}", body=body)
