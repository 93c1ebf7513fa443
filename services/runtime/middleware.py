"""What happens around every request: an id, a log line, metrics, and problems where the framework would send text."""

import re
import time
import uuid

import structlog
from fastapi import Request
from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.runtime.logging import bound
from services.runtime.problems import CLIENT_GONE, make_problem, problem_response

REQUEST_ID_HEADER = "X-Request-ID"
_ACCEPTED_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_QUIET_ROUTES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked for every few seconds by probes; logged only when they fail."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

REQUESTS = Counter("rekindle_http_requests_total", "Requests answered.", ["service", "method", "route", "status"])
LATENCY = Histogram(
    "rekindle_http_request_duration_seconds",
    "Time from a request's first byte to its response's last.",
    ["service", "method", "route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
_UNLOGGED = "unlogged"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def leave_unlogged(scope: Scope) -> None:
    """The request gets no line of its own: its answer is one of many alike, and whoever gives it logs them together."""
    scope["state"][_UNLOGGED] = True


class RequestContext:
    """Outermost ASGI middleware. Adds no task, thread or buffer of its own, so streams pass untouched."""

    def __init__(self, app: ASGIApp, service: str) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        response = _Response(scope, receive, send, request_id)
        started_at = time.perf_counter()
        with bound(request_id=request_id):
            try:
                await self._app(scope, receive, response.send)
            except Exception as error:
                # The problem handler has logged it and answered. Half a response must not look like a whole one:
                # passing the error on makes the server cut the connection.
                if not response.is_complete:
                    log.error("http.response_cut", error_type=type(error).__name__)  # noqa: TRY400
                    raise
            finally:
                self._account(scope, response, time.perf_counter() - started_at)

    def _account(self, scope: Scope, response: "_Response", duration_s: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = _route_template(scope)
        # No status: the client went away before there was one.
        status = str(response.status or CLIENT_GONE)
        REQUESTS.labels(self._service, method, route, status).inc()
        LATENCY.labels(self._service, method, route).observe(duration_s)
        if route in _QUIET_ROUTES and response.status is not None and response.status < 400:
            return
        if _UNLOGGED in scope["state"]:
            return
        log.info(
            "http.request",
            service=self._service,
            method=method,
            path=scope["path"],
            route=route,
            status=int(status),
            duration_s=round(duration_s, 4),
        )


class _Response:
    """Watches a response on its way out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._replaced = False
        self.status: int | None = None
        self.is_complete = False

    async def send(self, message: Message) -> None:
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID_HEADER] = self._request_id
            if self.status == 413 and headers.get("content-type", "").startswith("text/plain"):
                await self._refuse_body()
                return
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True

    async def _refuse_body(self) -> None:
        # The framework's body limit answers in plain text, whatever the handlers say.
        self._replaced = True
        request = Request(self._scope)
        problem = make_problem(request, "payload_too_large", "The request's body is larger than this call accepts.")
        response = problem_response(problem, {REQUEST_ID_HEADER: self._request_id, "Connection": "close"})
        await response(self._scope, self._receive, self._send)
        self.is_complete = True


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID_HEADER)
    return given if given is not None and _ACCEPTED_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _route_template(scope: Scope) -> str:
    """The route's path with its parameters' names, so that metrics have few series; `unmatched` for none."""
    # A route knows the path it was declared with; the prefixes of the routers around it are in FastAPI's context.
    included = scope.get("fastapi", {}).get("effective_route_context")
    route = included if included is not None else scope.get("route")
    path: object = getattr(route, "path_format", None)
    return path if isinstance(path, str) else "unmatched"
