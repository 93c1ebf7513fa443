"""HTTP with patience: timeouts, retries of what may be repeated, and problems as exceptions."""

import random
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import httpx2
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from services.client.errors import ApiError, Unreachable

Parsed = TypeVar("Parsed")
Query = Mapping[str, str | int | None]
"""What stands behind the question mark; None is left out."""
Files = list[tuple[str, tuple[str, bytes, str]]]
"""Parts of a multipart body: field, (file name, bytes, media type)."""

BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 5.0
FIRST_CONTACT_S = 2.0
"""How long a server that has never answered is tried: most likely there is none."""
ACCEPTED = 202
RETRIED_STATUSES = frozenset({502, 503, 504})
MAX_CONNECTIONS = 32


class _InvalidField(BaseModel):
    location: list[str | int]
    message: str


class _Problem(BaseModel):
    model_config = ConfigDict(extra="ignore")

    detail: str
    code: str
    status: int = 500
    request_id: str | None = None
    details: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    errors: list[_InvalidField] = Field(default_factory=list[_InvalidField])


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try again. `clock` and `sleep` are there for tests to replace."""

    total_s: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def wait(self, failures: int, retry_after_s: float, deadline_s: float) -> bool:
        """Waits before the next try; returns False, at once, where that would pass the deadline."""
        jitter = random.uniform(0.5, 1)  # noqa: S311 - spreads clients, guards nothing
        wait_s = max(retry_after_s, jitter * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (failures - 1)))
        if self.clock() + wait_s > deadline_s:
            return False
        self.sleep(wait_s)
        return True


class Transport:
    """Requests to one server. Safe for use from several threads."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        timeout_s: float,
        patience: Patience,
        http: httpx2.BaseTransport | None = None,
    ) -> None:
        """`http` stands in for the network."""
        self.base_url = base_url.rstrip("/")
        self.patience = patience
        self._has_answered = False
        self._client = httpx2.Client(
            base_url=self.base_url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout_s,
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS),
            transport=http,
        )
        # Presigned URLs lead to other servers, which must not see the key.
        self._elsewhere = httpx2.Client(timeout=timeout_s, transport=http)

    def close(self) -> None:
        self._client.close()
        self._elsewhere.close()

    def call(
        self,
        parse: TypeAdapter[Parsed],
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: BaseModel | None = None,
        files: Files | None = None,
    ) -> Parsed:
        """One request, repeated while it may succeed; a POST carries an Idempotency-Key, so it makes nothing twice.

        Raises:
            ApiError: the server answered with a problem.
            Unreachable: no answer within the client's patience.
        """
        return self.parsed(parse, self.respond(method, path, query=query, body=body, files=files))

    def respond(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: BaseModel | None = None,
        files: Files | None = None,
    ) -> httpx2.Response:
        """As `call`, for an answer that is not JSON."""
        headers = {"idempotency-key": uuid.uuid4().hex} if method == "POST" else {}
        params = _given(query or {})
        json = _json(body)

        def send() -> httpx2.Response:
            return self._client.request(method, path, params=params, json=json, files=files, headers=headers)

        return self._repeated(send)

    def text(self, path: str, *, query: Query) -> str:
        """The text at a path. Raises as `call` does."""
        return self._repeated(lambda: self._client.get(path, params=_given(query))).text

    def put_file(self, url: str, file: Path) -> None:
        """Streams a file to a path of the server, or to a presigned URL elsewhere. Raises as `call` does, and
        `OSError` where the file cannot be read."""
        client = self._elsewhere if "://" in url else self._client
        size_bytes = file.stat().st_size

        def send() -> httpx2.Response:
            with file.open("rb") as content:
                return client.put(url, content=content, headers={"content-length": str(size_bytes)})

        self._repeated(send)

    def download(self, path: str, file: Path, *, query: Query) -> None:
        """Writes what is at a path into a file, whole or not at all. Raises as `call` does, and `OSError` where the
        file cannot be written."""
        self._download(path, file, query)

    def download_when_ready(self, parse: TypeAdapter[Parsed], path: str, file: Path, *, query: Query) -> Parsed | None:
        """As `download`, from a path that answers 202 while there is nothing yet; then what it says, and no file. None:
        the file is there."""
        response = self._download(path, file, query)
        return self.parsed(parse, response) if response.status_code == ACCEPTED else None

    def _download(self, path: str, file: Path, query: Query) -> httpx2.Response:
        part = file.with_name(f".{file.name}.part")

        def receive() -> httpx2.Response:
            with self._client.stream("GET", path, params=_given(query)) as response:
                if not response.is_success or response.status_code == ACCEPTED:
                    response.read()
                    return response
                with part.open("wb") as content:
                    for chunk in response.iter_bytes():
                        content.write(chunk)
                return response

        try:
            response = self._repeated(receive)
            if response.status_code != ACCEPTED:
                part.replace(file)
            return response
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def stream(
        self,
        path: str,
        *,
        headers: Mapping[str, str],
        timeout_s: float | None = None,
        method: str = "GET",
        query: Query | None = None,
        body: BaseModel | None = None,
        files: Files | None = None,
    ) -> Generator[httpx2.Response, None, None]:
        """A response that is read while it arrives. Not repeated: the caller knows where to go on.

        `timeout_s` bounds every wait for the server; None: as for other calls.

        Raises:
            ApiError: the server answered with a problem.
            httpx2.TransportError: the connection failed.
        """
        request = self._client.build_request(
            method,
            path,
            params=_given(query or {}),
            json=_json(body),
            files=files,
            headers=dict(headers),
            timeout=self._client.timeout if timeout_s is None else timeout_s,
        )
        response = self._client.send(request, stream=True)
        with closing(response):
            self._has_answered = True
            if not response.is_success:
                response.read()
                _raise_problem(response)
            yield response

    @property
    def patience_s(self) -> float:
        """How long to try a server that cannot be reached."""
        return self.patience.total_s if self._has_answered else min(FIRST_CONTACT_S, self.patience.total_s)

    def _repeated(self, send: Callable[[], httpx2.Response]) -> httpx2.Response:
        started_s = self.patience.clock()
        failures = 0
        while True:
            failures += 1
            try:
                response = send()
            except httpx2.TransportError as error:
                # Asked anew each time: another thread may have had an answer since.
                if not self.patience.wait(failures, 0, started_s + self.patience_s):
                    raise self.unreachable(error) from error
                continue
            self._has_answered = True
            if response.is_success:
                return response
            retry = response.status_code in RETRIED_STATUSES and self.patience.wait(
                failures, _retry_after_s(response), started_s + self.patience.total_s
            )
            if not retry:
                _raise_problem(response)

    def unreachable(self, error: httpx2.TransportError) -> Unreachable:
        """What a transport error is to the caller."""
        reason = str(error) or type(error).__name__
        return Unreachable(f"{self.base_url} does not answer ({reason}): is Rekindle running there? Try `rekindle up`")

    def parsed(self, parse: TypeAdapter[Parsed], response: httpx2.Response) -> Parsed:
        """The answer's JSON. Raises `ApiError` where that is of another form."""
        try:
            return parse.validate_json(response.content or b"null")
        except ValidationError as error:
            raise self.unexpected(response.status_code) from error

    def unexpected(self, status: int) -> ApiError:
        """What an answer that cannot be read is to the caller."""
        return ApiError(
            status,
            "unexpected_answer",
            f"{self.base_url} did not answer like a Rekindle of this release: check the URL, or update the client",
        )


def _json(body: BaseModel | None) -> JsonValue:
    return body.model_dump(mode="json", exclude_unset=True) if body is not None else None


def _given(query: Query) -> dict[str, str | int]:
    return {name: value for name, value in query.items() if value is not None}


def _retry_after_s(response: httpx2.Response) -> float:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdigit() else 0.0


def _raise_problem(response: httpx2.Response) -> NoReturn:
    retry_after_s = _retry_after_s(response)
    try:
        problem = _Problem.model_validate_json(response.content)
    except ValidationError:
        reason = f"the server answered {response.status_code} {response.reason_phrase}"
        raise ApiError(response.status_code, "unknown", reason, retry_after_s=retry_after_s) from None
    raise _error(response.status_code, problem, retry_after_s)


def problem_in_stream(problem: Mapping[str, JsonValue], retry_after_s: float) -> ApiError:
    """The error that a problem is which comes in the middle of a stream.

    Raises `ValidationError` for what is no problem.
    """
    parsed = _Problem.model_validate(problem)
    return _error(parsed.status, parsed, retry_after_s)


def _error(status: int, problem: _Problem, retry_after_s: float) -> ApiError:
    fields = "; ".join(f"{'.'.join(map(str, field.location))}: {field.message}" for field in problem.errors)
    message = f"{problem.detail} ({fields})" if fields and fields not in problem.detail else problem.detail
    return ApiError(status, problem.code, message, problem.details, problem.request_id, retry_after_s)
