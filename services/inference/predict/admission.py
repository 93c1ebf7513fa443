"""Turning requests away for which there is no room, before anything is done for them.

Under a flood most requests are refused, so what a refusal costs decides how much is left for the others: it must not
take what the framework spends on routing, parameters and a body, nor a log line of its own. Outside of it only what is
in memory is looked at; whoever is not turned away here may still be refused later.
"""

import asyncio
from contextlib import ExitStack
from contextvars import Context

import structlog
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.contracts.errors import Overloaded, RekindleError
from services.inference.context import Inference
from services.inference.predict.queries import VersionChoice
from services.runtime import auth
from services.runtime.middleware import leave_unlogged
from services.runtime.problems import error_response, request_id_of

PATH = "/v1/models/{model_name}/predict"
LOGGED_EVERY_S = 1.0
"""What is turned away in that time is one line of the log."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Admission:
    """ASGI middleware before the application of the inference gateway."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._route = Route(PATH, app, methods=["POST"])
        self._refused = 0
        """Since the last line of the log."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        choice = self._choice_of(scope) if scope["type"] == "http" else None
        with ExitStack() as held:
            if choice is not None:
                request = Request(scope)
                inference: Inference = request.app.state.inference
                try:
                    held.enter_context(inference.predictor.place_for(choice, request_id_of(request) or ""))
                except Overloaded as refusal:
                    if await _may_predict(request):
                        scope["route"] = self._route  # what it is counted under
                        leave_unlogged(scope)
                        self._count_refused()
                        await error_response(request, refusal)(scope, receive, send)
                        return
            await self._app(scope, receive, send)

    def _count_refused(self) -> None:
        if not self._refused:
            # In a context of its own: the line is not the first of these requests'.
            asyncio.get_running_loop().call_later(LOGGED_EVERY_S, self._log_refused, context=Context())
        self._refused += 1

    def _log_refused(self) -> None:
        log.warning("predict.refused", count=self._refused, within_s=LOGGED_EVERY_S)
        self._refused = 0

    def _choice_of(self, scope: Scope) -> VersionChoice | None:
        """What is to predict; None for any other request, and for one that the application will find fault with."""
        match, found = self._route.matches(scope)
        if match is not Match.FULL:
            return None
        model_name, query = found["path_params"]["model_name"], QueryParams(scope["query_string"])
        version, alias = query.get("version"), query.get("alias")
        if version is None:
            return VersionChoice(model_name, alias=alias)
        return VersionChoice(model_name, int(version)) if version.isdecimal() and alias is None else None


async def _may_predict(request: Request) -> bool:
    """Strangers are not told what is served here."""
    try:
        await auth.require(auth.Scope.PREDICT)(request)
    except RekindleError:
        return False
    return True
