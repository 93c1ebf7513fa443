"""An S3 endpoint with faults: answers errors, drops connections, loses answers; otherwise passes on to a real one."""

import http.client
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """An error in place of the real answer; the request is not passed on."""

    status: int
    code: str


@dataclass(frozen=True)
class LoseAnswer:
    """The request is passed on and done; the connection closes without an answer."""


@dataclass(frozen=True)
class CutBody:
    """The request is passed on and done; the connection closes in the middle of the answer's body."""


Fault = Answer | LoseAnswer | CutBody


@dataclass
class FaultyS3:
    """A running endpoint. Each request takes the next fault whose method fits, or none."""

    endpoint_url: str
    faults: deque[tuple[str, Fault]] = field(default_factory=deque)
    requests: list[str] = field(default_factory=list)
    """`METHOD path?query` of every request so far."""
    always: Fault | None = None
    """Applies to every request for which no other fault is left."""

    def add(self, method: str, *faults: Fault) -> None:
        self.faults.extend((method, fault) for fault in faults)

    def take(self, method: str) -> Fault | None:
        if self.faults and self.faults[0][0] == method:
            return self.faults.popleft()[1]
        return self.always


@contextmanager
def faulty_s3(upstream_url: str) -> Iterator[FaultyS3]:
    """Starts an endpoint in a thread of this process, in front of the server at `upstream_url`."""
    upstream = urlsplit(upstream_url).netloc
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    state = FaultyS3(f"http://127.0.0.1:{server.server_address[1]}")
    server.state, server.upstream = state, upstream  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        state: FaultyS3 = self.server.state  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        state.requests.append(f"{self.command} {self.path}")
        fault = state.take(self.command)
        if isinstance(fault, Answer):
            text = f"<Error><Code>{fault.code}</Code><Message>made up</Message></Error>".encode()
            self._reply(fault.status, [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else text)
            return
        status, headers, answer = self._pass_on(body)
        if isinstance(fault, LoseAnswer):
            self._hang_up()
        elif isinstance(fault, CutBody):
            self._reply(status, headers, answer[: len(answer) // 2], length=len(answer))
            self._hang_up()
        else:
            self._reply(status, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # the base class looks these names up

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)  # type: ignore[attr-defined]
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream.request(self.command, self.path, body=body, headers=headers)
            response = upstream.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            upstream.close()

    def _reply(self, status: int, headers: list[tuple[str, str]], body: bytes, length: int | None = None) -> None:
        self.send_response_only(status)
        own = {"transfer-encoding", "connection", *([] if self.command == "HEAD" else ["content-length"])}
        for name, value in headers:
            if name.lower() not in own:
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: `FaultyS3.requests` has it all."""
