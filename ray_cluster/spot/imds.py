"""A client for EC2's instance metadata service, version 2. Standard library only."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage
from typing import IO, NoReturn
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

ENDPOINT = "http://169.254.169.254"
TIMEOUT_S = 2.0
TOKEN_TTL_S = 21600
_REFRESH_BEFORE_S = 600
_LONGEST_ANSWER = 64 * 1024


class ImdsUnavailable(Exception):
    """The service did not answer, or not as AWS documents it. Says nothing about notices."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service said."""

    body: str | None
    """None when there is nothing at the path (404): for notices the normal answer."""
    service_time: datetime | None
    """The service's clock, from its `Date` header."""


class _NoRedirects(HTTPRedirectHandler):
    """The token must not be carried elsewhere, and the service never redirects."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> NoReturn:
        raise HTTPError(req.full_url, code, msg, headers, fp)


class Imds:
    """Reads metadata; keeps a session token and renews it. Not for several threads."""

    def __init__(
        self,
        endpoint: str = ENDPOINT,
        *,
        timeout_s: float = TIMEOUT_S,
        token_ttl_s: int = TOKEN_TTL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._timeout_s = timeout_s
        self._token_ttl_s = token_ttl_s
        self._clock = clock
        # A link-local address: never through a proxy, whatever the environment says.
        self._opener = build_opener(ProxyHandler({}), _NoRedirects)
        self._token = ""
        self._renew_at = -math.inf

    def get(self, path: str) -> Answer:
        """What is at `path`. Raises `ImdsUnavailable`; the next call may succeed."""
        try:
            return self._get(path)
        except HTTPError as error:
            if error.code != 401:
                raise ImdsUnavailable(f"{path}: status {error.code}") from error
        self._renew_at = -math.inf  # the token is not known any more, as after a restart of the service
        try:
            return self._get(path)
        except HTTPError as error:
            raise ImdsUnavailable(f"{path}: status {error.code} with a new token") from error

    def _get(self, path: str) -> Answer:
        request = Request(self._endpoint + path, headers={"X-aws-ec2-metadata-token": self._fresh_token()})  # noqa: S310
        try:
            body, headers = self._open(request)
        except HTTPError as error:
            if error.code == 404:
                return Answer(None, _service_time(error.headers))
            raise
        return Answer(body, _service_time(headers))

    def _fresh_token(self) -> str:
        if self._clock() >= self._renew_at:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(self._token_ttl_s)}
            asked_at = self._clock()
            request = Request(f"{self._endpoint}/latest/api/token", method="PUT", headers=lifetime)  # noqa: S310
            try:
                self._token, _ = self._open(request)
            except HTTPError as error:
                raise ImdsUnavailable(f"no session token: status {error.code}") from error
            self._renew_at = asked_at + max(self._token_ttl_s / 2, self._token_ttl_s - _REFRESH_BEFORE_S)
        return self._token

    def _open(self, request: Request) -> tuple[str, HTTPMessage]:
        """Raises `HTTPError` for every answer but success."""
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return response.read(_LONGEST_ANSWER).decode(), response.headers
        except HTTPError:
            raise
        except (OSError, HTTPException, ValueError) as error:
            raise ImdsUnavailable(f"{request.full_url}: {type(error).__name__}: {error}") from error


def _service_time(headers: Message) -> datetime | None:
    try:
        return parsedate_to_datetime(headers["Date"]).astimezone(UTC)
    except (TypeError, ValueError):
        return None
