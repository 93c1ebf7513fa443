"""Turning requests away for which there is no room, before anything is done for them.

Under a flood most requests are refused, so what a refusal costs decides how much is left for the others: it must not
take what the framework spends on routing, parameters and a body. Outside of it only what is in memory is looked at;
whoever is not turned away here may still be refused later.
"""

from contextlib import ExitStack

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.contracts.errors import Overloaded, RekindleError
from services.inference.context import Inference
from services.inference.predict.queries import VersionChoice
from services.runtime import auth
from services.runtime.problems import error_response, request_id_of

PATH = "/v1/models/{model_name}/predict"


class Admission:
    """ASGI middleware before the application of the inference gateway."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._route = Route(PATH, app, methods=["POST"])

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
                        await error_response(request, refusal)(scope, receive, send)
                        return
            await self._app(scope, receive, send)

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
