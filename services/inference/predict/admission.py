"""Turning requests away for which there is no room, before anything is done for them.

Under a flood most requests are refused, so what a refusal costs decides how much is left for the others: it must not
take what the framework spends on routing, parameters and a body. Outside of it only what is in memory is looked at;
whoever is not turned away here may still be refused later.
"""

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.contracts.errors import Overloaded, RekindleError
from services.inference.context import Inference
from services.inference.predict.queries import VersionChoice
from services.runtime import auth
from services.runtime.problems import error_response, request_id_of

PATH = "/v1/models/{model_name}/predict"


async def _answered_elsewhere(_request: Request) -> Response:
    raise NotImplementedError


class Admission:
    """ASGI middleware before the application of the inference gateway."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._route = Route(PATH, _answered_elsewhere, methods=["POST"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = await self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            scope["route"] = self._route  # what it is counted under
            await error_response(Request(scope), refusal)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> Overloaded | None:
        """None also for every request that the application has to find fault with."""
        match, found = self._route.matches(scope)
        if match is not Match.FULL:
            return None
        request = Request(scope)
        inference: Inference = request.app.state.inference
        choice = _choice_of(found["path_params"]["model_name"], request.query_params)
        refusal = None if choice is None else inference.predictor.no_room_for(choice, request_id_of(request) or "")
        if refusal is None:
            return None
        try:
            # Strangers are not told what is served here.
            await auth.require(auth.Scope.PREDICT)(request)
        except RekindleError:
            return None
        return refusal


def _choice_of(model_name: str, query: QueryParams) -> VersionChoice | None:
    version, alias = query.get("version"), query.get("alias")
    if version is None:
        return VersionChoice(model_name, alias=alias)
    return VersionChoice(model_name, int(version)) if version.isdecimal() and alias is None else None
