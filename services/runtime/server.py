"""The HTTP server that every gateway process runs."""

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

STARTUP_FAILED = 3
"""Exit status, the same that uvicorn itself has for it."""


class GatewayServer(uvicorn.Server):
    """Ends streams as soon as it is told to stop, so that it need not wait for them."""

    def __init__(self, config: uvicorn.Config, end_streams: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_streams = end_streams

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening, ends the streams, and waits for the requests in progress."""
        self._end_streams()
        await super().shutdown(sockets)


def serve(app: FastAPI, *, host: str, port: int, end_streams: Callable[[], None], graceful_shutdown_s: int) -> None:
    """Serves until SIGTERM or SIGINT; then requests in progress have `graceful_shutdown_s` to be answered.

    Raises `SystemExit` when the application cannot start.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=graceful_shutdown_s,
    )
    server = GatewayServer(config, end_streams)
    server.run()
    if not server.started:
        raise SystemExit(STARTUP_FAILED)
