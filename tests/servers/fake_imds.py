"""EC2's instance metadata service (IMDSv2) on loopback, with what a test wants it to say."""

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ray_cluster.spot.notices import INSTANCE_ACTION_PATH, REBALANCE_PATH

TOKEN_PATH = "/latest/api/token"


@dataclass
class FakeImds:
    """Metadata need a token that this server gave; what is not in `bodies` is a 404."""

    url: str = ""
    bodies: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """By path: what the next answers are instead of the usual one. 302 leads to `/elsewhere`; 0 hangs for `hang_s`."""
    hang_s: float = 3.0
    skew: timedelta = timedelta()
    """How far this service's clock is ahead of the machine's."""
    tokens: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Methods and paths."""

    def now(self) -> datetime:
        """The service's time."""
        return datetime.now(UTC) + self.skew

    def notify(self, in_s: float, action: str = "terminate") -> datetime:
        """A spot notice from now on, for `in_s` seconds from now; returns when, on the service's clock."""
        at = (self.now() + timedelta(seconds=in_s)).replace(microsecond=0)
        self.bodies[INSTANCE_ACTION_PATH] = json.dumps({"action": action, "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"})
        return at

    def recommend_rebalance(self) -> None:
        """A rebalance recommendation from now on."""
        self.bodies[REBALANCE_PATH] = json.dumps({"noticeTime": f"{self.now():%Y-%m-%dT%H:%M:%SZ}"})

    def forget_tokens(self) -> None:
        """As after a restart of the service."""
        self.tokens.clear()


@contextmanager
def fake_imds() -> Iterator[FakeImds]:
    """Runs until the block ends."""
    imds = FakeImds()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            if self._scripted():
                return
            if self.path != TOKEN_PATH or not self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
                self._answer(400)
                return
            token = secrets.token_urlsafe(12)
            imds.tokens.add(token)
            self._answer(200, token)

        def do_GET(self) -> None:
            if self._scripted():
                return
            if self.headers.get("X-aws-ec2-metadata-token") not in imds.tokens:
                self._answer(401)
            elif (body := imds.bodies.get(self.path)) is None:
                self._answer(404)
            else:
                self._answer(200, body)

        def _scripted(self) -> bool:
            imds.asked.append((self.command, self.path))
            planned = imds.statuses.get(self.path)
            if not planned:
                return False
            status = planned.pop(0)
            if status:
                self._answer(status)
            else:
                time.sleep(imds.hang_s)
            return True

        def _answer(self, status: int, body: str = "") -> None:
            self.send_response_only(status)
            self.send_header("Date", format_datetime(imds.now(), usegmt=True))
            if status == 302:
                self.send_header("Location", f"{imds.url}/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: `asked` has it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        imds.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield imds
        finally:
            server.shutdown()
            thread.join()
