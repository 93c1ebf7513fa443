"""One request to an ASGI application of which a test sees each part of the answer when it is sent, and may go away."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlencode

import httpx2
from starlette.types import ASGIApp

PATIENCE_S = 10


class Exchange:
    """What the application has sent so far. Made by `exchange`."""

    def __init__(self, app: ASGIApp, request: httpx2.Request, *, sends_body: bool) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self._body = request.read()
        self._received = not sends_body
        self._left = asyncio.Event()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": request.url.path,
            "raw_path": quote(request.url.path).encode(),
            "query_string": request.url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "server": ("gateway", 80),
            "client": ("client", 1),
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def line(self) -> dict[str, Any]:
        """The next line of the body. Raises `EOFError` after the last."""
        async with asyncio.timeout(PATIENCE_S):
            chunk = await self._chunks.get()
        if chunk is None:
            raise EOFError
        assert chunk.endswith(b"\n"), chunk
        assert chunk.count(b"\n") == 1, chunk
        return json.loads(chunk)

    async def whole(self) -> dict[str, Any]:
        """The body of an answer that is one JSON object."""
        async with asyncio.timeout(PATIENCE_S):
            chunk = await self._chunks.get()
        assert chunk is not None, "there is no body"
        return json.loads(chunk)

    async def rest(self) -> list[dict[str, Any]]:
        """All lines that are still to come."""
        lines = []
        while True:
            try:
                lines.append(await self.line())
            except EOFError:
                return lines

    async def leave(self) -> None:
        """Goes away, and waits until the application has done with the request."""
        self._left.set()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([self.task])

    async def _receive(self) -> dict[str, Any]:
        if not self._received:
            self._received = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        if message["body"]:
            self._chunks.put_nowait(message["body"])
        if not message.get("more_body", False):
            self._chunks.put_nowait(None)


@asynccontextmanager
async def exchange(
    app: ASGIApp, path: str, query: dict[str, object], *, sends_body: bool = True, **request: Any
) -> AsyncGenerator[Exchange, None]:
    """A POST; ended by going away where it has not ended by itself. Its body may keep it waiting."""
    url = f"http://gateway{path}?{urlencode(query)}"
    answer = Exchange(app, httpx2.Request("POST", url, **request), sends_body=sends_body)
    try:
        yield answer
    finally:
        await answer.leave()
