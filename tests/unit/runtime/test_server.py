"""The gateways' HTTP server, in a process of its own."""

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from services.local.ports import free_ports

SERVER = """
import sys
from fastapi import FastAPI
from services.runtime.server import serve

app = FastAPI()
app.get("/")(lambda: {})
serve(app, host="127.0.0.1", port=int(sys.argv[1]), end_streams=lambda: None, graceful_shutdown_s=1)
"""
CLOSED_BY_DEFAULT_AFTER_S = 5
"""By uvicorn."""
STARTS_WITHIN_S = 60.0


@pytest.fixture
def port() -> Iterator[int]:
    """Of a running server."""
    (port,) = free_ports(1)
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)])
    try:
        deadline_s = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < deadline_s, "the server does not start"
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        assert process.wait(10) is not None


def test_a_connection_outlives_the_patience_of_load_balancers(port: int) -> None:
    """As far as a test can wait: longer than uvicorn would by itself."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.connect()
    used = connection.sock
    for idle_s in (0, CLOSED_BY_DEFAULT_AFTER_S + 1):
        time.sleep(idle_s)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"{}"
        assert connection.sock is used
    connection.close()
