"""A build that fails says why in the bucket."""

from pathlib import Path

import pytest

from ray_cluster.export import build
from services.contracts import names
from services.contracts.exports import ExportFailure
from services.contracts.jobs import FailureClass
from services.runtime.objects import open_store


def test_a_build_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "connect", lambda: None)
    arguments = ["--bucket", tmp_path.as_uri(), "--model", "flowers", "--version", "9", "--format", "onnx"]
    assert build.main([*arguments, "--build", "2"]) == 1
    failed = open_store(tmp_path.as_uri()).get(names.model_export_failure("flowers", 9, "onnx", 2))
    record = ExportFailure.model_validate_json(failed)
    assert (record.build, record.failure.failure_class, record.failure.code) == (2, FailureClass.USER, "not_found")
