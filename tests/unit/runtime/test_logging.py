"""Logs: one line per event, in one form for everything, and never a secret."""

import json
import logging
from typing import Any

import pytest
import structlog

from services.runtime.logging import bound, configure_logging, redact, redact_text
from services.runtime.settings import Settings

KEY = "rk_0123456789abcdef_" + "5" * 64


@pytest.fixture(autouse=True)
def _restored_logging() -> Any:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_an_event_is_one_json_line_with_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json"))
    with bound(job_id="job_1"):
        structlog.get_logger("here").info("job.submitted", attempt=2)
    structlog.get_logger("here").info("job.other")
    first, second = lines(capsys)
    assert (first["event"], first["attempt"], first["job_id"]) == ("job.submitted", 2, "job_1")
    assert (first["level"], first["logger"]) == ("info", "here")
    assert first["timestamp"].endswith("Z")
    assert "job_id" not in second


def test_lines_of_libraries_take_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json"))
    with bound(request_id="r1"):
        logging.getLogger("uvicorn.error").warning("port %d is taken", 80)
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["request_id"]) == ("port 80 is taken", "warning", "r1")


def test_an_exception_keeps_its_traceback_and_loses_its_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json"))
    try:
        int(KEY)  # its error quotes the text
    except ValueError:
        structlog.get_logger().exception("it.failed")
        logging.getLogger("library").exception("and with %s", KEY)
    for line in lines(capsys):
        assert "Traceback" in line["exception"]
        assert "5" * 12 not in json.dumps(line)


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json", log_level="warning"))
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


def test_configuring_twice_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json"))
    configure_logging(Settings(log_format="json"))
    structlog.get_logger().info("once")
    assert len(lines(capsys)) == 1


def test_the_console_form_shows_the_event_and_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings())
    structlog.get_logger().info("job.submitted", attempt=2, api_key=KEY)
    shown = capsys.readouterr().err
    assert "job.submitted" in shown
    assert "attempt=2" in shown
    assert "5" * 12 not in shown


@pytest.mark.parametrize(
    "text",
    [
        f"key {KEY}",
        "Authorization: Bearer sup3r.s3cret-t0ken",
        "postgresql+asyncpg://me:sup3r.s3cret@db/rekindle",
        "https://b.s3.amazonaws.com/k?X-Amz-Signature=sup3rs3cret&x=1",
        "https://b.s3.amazonaws.com/k?AWSAccessKeyId=sup3rs3cret&Signature=sup3rs3cret%3D",
        "credentials AKIAIOSFODNN7EXAMPLE",
    ],
)
def test_secrets_are_taken_out_of_texts(text: str) -> None:
    shown = redact_text(text)
    assert "redacted" in shown
    for secret in ("5" * 12, "sup3r", "s3cret", "IOSFODNN7EXAMPLE"):
        assert secret not in shown


@pytest.mark.parametrize("text", ["s3://bucket/a:b@c/d.jpg", "http://127.0.0.1:8265/api", "job_0199a8c0", "12:30"])
def test_ordinary_texts_stay(text: str) -> None:
    assert redact_text(text) == text


def test_secrets_are_taken_out_by_the_names_of_fields() -> None:
    shown = redact({"spec": {"ray_token": "x1y2", "classes": ["a"], "epochs": 3}, "AWS_SECRET_ACCESS_KEY": "x1y2"})
    assert shown == {
        "spec": {"ray_token": "[redacted]", "classes": ["a"], "epochs": 3},
        "AWS_SECRET_ACCESS_KEY": "[redacted]",
    }


def test_image_bytes_are_never_written() -> None:
    assert redact({"body": b"\xff\xd8\xff"}) == {"body": "<3 bytes>"}
