"""Waiting for an export, and writing its archive."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from services.client import ApiError
from services.client.models import Models
from services.client.transport import Patience, Transport
from services.contracts.exports import ExportFormat, ExportStatus


def waiting(state: str) -> httpx2.Response:
    body = {
        "model_name": "flowers",
        "version": 3,
        "format": "onnx",
        "state": state,
        "build": 1,
        "submission_id": "job_1-export-onnx-1",
        "retry_after_s": 2,
    }
    return httpx2.Response(202, json=body, headers={"retry-after": "2"})


def models(answers: Iterator[httpx2.Response], waits: list[float]) -> Models:
    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.url.path == "/v1/models/flowers/versions/3/export"
        assert request.url.params["format"] == "onnx"
        return next(answers)

    patience = Patience(30, lambda: sum(waits), waits.append)
    http = httpx2.MockTransport(answer)
    return Models(Transport("http://server", api_key=None, timeout_s=5, patience=patience, http=http))


def test_an_export_is_waited_for_and_then_written(tmp_path: Path) -> None:
    waits: list[float] = []
    told: list[ExportStatus] = []
    answers = iter([waiting("pending"), waiting("running"), httpx2.Response(200, content=b"archive")])
    file = tmp_path / "flowers.zip"
    models(answers, waits).export("flowers", 3, ExportFormat.ONNX, file, on_progress=told.append)
    assert file.read_bytes() == b"archive"
    assert [each.state for each in told] == ["pending", "running"]
    assert waits == [2, 2]
    assert list(tmp_path.iterdir()) == [file]


def test_an_export_that_failed_or_takes_too_long_leaves_no_file(tmp_path: Path) -> None:
    problem = httpx2.Response(409, json={"code": "export_failed", "detail": "the weights are gone"})
    with pytest.raises(ApiError, match="the weights are gone"):
        models(iter([waiting("running"), problem]), []).export("flowers", 3, "onnx", tmp_path / "flowers.zip")
    with pytest.raises(TimeoutError, match="after 3 s"):
        models(iter([waiting("running")] * 9), []).export("flowers", 3, "onnx", tmp_path / "x.zip", timeout_s=3)
    assert list(tmp_path.iterdir()) == []
