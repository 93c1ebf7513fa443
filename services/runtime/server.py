"""The HTTP server that every gateway process runs."""

import gc
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from services.runtime.settings import TlsFiles

KEEP_ALIVE_S = 75
"""How long an idle connection stays open: longer than clients and load balancers keep theirs (AWS': 60 s), who would
else send a request into one that is just being closed."""
STARTUP_FAILED = 3
"""Exit status, the same that uvicorn itself has for it."""


class GatewayServer(uvicorn.Server):
    """Ends streams as soon as it is told to stop, so that it need not wait for them."""

    def __init__(self, config: uvicorn.Config, end_streams: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_streams = end_streams

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts listening. What is there by then stays, so Python's garbage collector need not look through it again
        and again, which would hold up all requests for 0.05 s each time, and longer on busy cores."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening, ends the streams, and waits for the requests in progress."""
        self._end_streams()
        await super().shutdown(sockets)


def serve(
    app: FastAPI,
    *,
    host: str,
    port: int,
    end_streams: Callable[[], None],
    graceful_shutdown_s: int,
    tls: TlsFiles | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT; then requests in progress have `graceful_shutdown_s` to be answered.

    With `tls` by HTTPS (1.2 or later) and nothing else. Raises `SystemExit` when the application cannot start, with a
    message where the certificate or its key cannot be used.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=graceful_shutdown_s,
        timeout_keep_alive=KEEP_ALIVE_S,
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
    )
    try:
        config.load()
    except OSError as error:  # an SSLError is one as well
        raise SystemExit(f"REKINDLE_TLS_CERTIFICATE and REKINDLE_TLS_KEY cannot be used: {error}") from error
    server = GatewayServer(config, end_streams)
    server.run()
    if not server.started:
        raise SystemExit(STARTUP_FAILED)
