"""Logs: one line per event, with a stable name (`run.preempted`), its values, and the request and job it belongs to.

Use `log = structlog.get_logger()` and `log.info("job.submitted", attempt=2)`. Lines of libraries that use the standard
library's logging come out the same way.
"""

import logging
import re
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from services.runtime.settings import Settings

_SECRET_NAME = re.compile(r"token|secret|password|passwd|authorization|api_?key|cookie|credential|database_url", re.I)
_SECRET_VALUES = (
    (r"rk_", re.compile(r"\brk_([0-9a-f]{1,32})_[0-9A-Za-z_-]+"), r"rk_\1_[redacted]"),
    (r"bearer|basic", re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]+"), r"\1 [redacted]"),
    (r"@", re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s:@]*:[^/\s@]*@", re.I), r"\1[redacted]@"),
    (
        r"x-amz-|signature|awsaccesskeyid",
        re.compile(r"(?i)\b(X-Amz-(?:Signature|Credential|Security-Token)|Signature|AWSAccessKeyId)=[^&\s'\"]+"),
        r"\1=[redacted]",
    ),
    (r"akia|asia", re.compile(r"\b((?:AKIA|ASIA)[0-9A-Z]{4})[0-9A-Z]{12}\b"), r"\1[redacted]"),
)
"""For each kind: what every text that has one contains, in any case; the pattern; what it becomes."""
_MAYBE_SECRET = re.compile("|".join(hint for hint, _, _ in _SECRET_VALUES), re.I)
"""Nearly no text has any of it, and one search is less than five."""
_QUIET = ("botocore", "boto3", "urllib3", "s3transfer", "httpx2", "httpcore2", "aiosqlite", "alembic", "asyncio")
"""Libraries whose lines below WARNING say nothing to an operator."""


def redact_text(text: str) -> str:
    """The text without API keys, bearer tokens, passwords in URLs, and AWS signatures and key ids."""
    if _MAYBE_SECRET.search(text):
        for _, pattern, replacement in _SECRET_VALUES:
            text = pattern.sub(replacement, text)
    return text


def redact(value: object, name: str = "") -> object:
    """A copy of a JSON-like value without secrets: by the names of fields, and by how values look."""
    if name and _SECRET_NAME.search(name) and value is not None and not isinstance(value, bool):
        return "[redacted]"
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {key: redact(item, str(key)) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(cast('bytes', value))} bytes>"  # never image bytes
    if isinstance(value, Sequence):
        return [redact(item) for item in cast("Sequence[object]", value)]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return redact_text(str(value))


def _redact_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)  # uvicorn's second copy of its message, for terminals
    return {key: item if key.startswith("_") else redact(item, key) for key, item in event.items()}


def configure_logging(settings: Settings) -> None:
    """Sends every log line of this process to stderr, in the format and from the level that the settings ask for.

    Call once in `main`; calling again replaces what the last call set up.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    handler = _Handler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            # Redacting comes last, so that it sees formatted messages and tracebacks.
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _redact_event, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [other for other in root.handlers if not isinstance(other, _Handler)]
    root.addHandler(handler)
    root.setLevel(settings.log_level.upper())
    _take_over_libraries()


def _take_over_libraries() -> None:
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    # `http.request` says the same, with the route, the request id and the time it took.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)


class _Handler(logging.StreamHandler):  # pyright: ignore[reportMissingTypeArgument]
    """Ours among a root logger's handlers."""


@contextmanager
def bound(**values: object) -> Generator[None, None, None]:
    """Adds values, e.g. `job_id=…, attempt=…`, to every line logged inside, by this task and those it starts."""
    with structlog.contextvars.bound_contextvars(**values):
        yield
