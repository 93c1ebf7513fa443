"""A streamed answer over HTTP: NDJSON, a line as soon as there is one, and a last line that says how it ended."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from services.contracts.errors import RetryLater
from services.contracts.predictions import NDJSON, StreamBroken
from services.inference.accept import prefers
from services.runtime.disconnect import unless_client_leaves
from services.runtime.problems import report

# Proxies shall pass each line on when it comes.
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def wants_stream(accept: str) -> bool:
    """Whether an `Accept` header prefers NDJSON to one JSON document."""
    return prefers(accept, NDJSON, over="application/json")


class StreamedAnswer(StreamingResponse):
    """Sends what `lines` yields, each as a line of JSON.

    - An error before the first line is raised: the response has not begun, so it becomes an ordinary problem.
    - An error after it becomes the last line (`StreamBroken`).
    - When the client goes away, `lines` is cancelled at once, also before its first line.

    However it ends, `lines` is closed first, then `held`: what it works with.
    """

    def __init__(self, request: Request, lines: AsyncGenerator[BaseModel, None], held: AsyncExitStack) -> None:
        """The request's body must have been read: what it receives from now on can only be its end."""
        super().__init__(self._encoded(), headers=_HEADERS, media_type=NDJSON)
        self._request = request
        self._lines = lines
        self._held = held
        self._first = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            with suppress(ClientDisconnect):
                await unless_client_leaves(receive, self._answer(send))

    async def _answer(self, send: Send) -> None:
        async with aclosing(self._lines):
            self._first = _encoded(await anext(self._lines))
            await self.stream_response(send)

    async def _encoded(self) -> AsyncGenerator[bytes, None]:
        yield self._first
        try:
            async for line in self._lines:
                yield _encoded(line)
        except Exception as error:  # noqa: BLE001 - it is logged, and must not end the stream without a word
            yield _encoded(self._broken(error))

    def _broken(self, error: Exception) -> StreamBroken:
        problem = report(self._request, error)
        retry_after_s = error.retry_after_s if isinstance(error, RetryLater) else None
        return StreamBroken(problem=problem.model_dump(mode="json"), retry_after_s=retry_after_s)


def _encoded(line: BaseModel) -> bytes:
    return line.model_dump_json().encode() + b"\n"
