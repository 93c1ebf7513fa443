"""Models, their versions, and the names (aliases) that point at versions."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from pydantic import TypeAdapter

from services.client.transport import Transport
from services.contracts.aliases import AliasChange, AliasShadow, AliasSplit, AliasTarget, ModelAlias
from services.contracts.exports import ExportFormat, ExportStatus
from services.contracts.models import Model, ModelVersion
from services.contracts.pages import Page

_MODEL = TypeAdapter(Model)
_MODELS = TypeAdapter(Page[Model])
_VERSION = TypeAdapter(ModelVersion)
_ALIAS = TypeAdapter(ModelAlias)
_VERSIONS = TypeAdapter(Page[ModelVersion])
_EXPORT = TypeAdapter(ExportStatus)


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

    def export(
        self,
        model: str,
        version: int,
        format: ExportFormat | str,
        file: Path | str,
        *,
        on_progress: Callable[[ExportStatus], None] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Writes a version as an archive for other programs into a file, whole or not at all.

        Waits while the cluster builds it, which it does the first time only.

        Args:
            format: `keras`, `savedmodel`, `tflite` or `onnx`.
            on_progress: Is told what the build is at, each time it was asked for.

        Raises:
            TimeoutError: it is not there after `timeout_s` seconds; the build goes on.
            OSError: the file cannot be written.
        """
        path, query = f"{model_path(model)}/versions/{version}/export", {"format": str(format)}
        patience = self._transport.patience
        started_s = patience.clock()
        while True:
            status = self._transport.download_when_ready(_EXPORT, path, Path(file), query=query)
            if status is None:
                return
            if on_progress is not None:
                on_progress(status)
            if timeout_s is not None and patience.clock() + status.retry_after_s > started_s + timeout_s:
                raise TimeoutError(f"version {version} of {model} as {format} is not there after {timeout_s:g} s")
            patience.sleep(status.retry_after_s)

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
