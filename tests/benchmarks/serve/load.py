"""A load on a server that predicts, in a process of its own: `python -m tests.benchmarks.serve.load`, which reads a
`Load` as JSON.

Plain HTTP/1.1 on kept connections, with as little work of its own as possible: it shares the cores with what it
measures. A closed loop has a number of clients that each send their next image when the last is answered; an open loop
sends at a rate, whatever becomes of what it sent. Prints a `Loaded` as JSON.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """What to send, and where."""

    url: str
    """Of the server, without a path."""
    paths: Sequence[str]
    """One is drawn for each request."""
    images: Sequence[str]
    """Files; the bodies, in turn."""
    clients: int
    """Connections; of an open loop the most."""
    seconds: float
    warm_up_s: float = 1.0
    """Before that, not counted."""
    zipf: bool = False
    """Draws the nth path 1/n times as often as the first; else all as often."""
    rate: float | None = None
    """Of an open loop, requests a second; null for a closed one."""
    form_field: str | None = None
    """Sends the image as this file of a form, not as the body."""
    once: bool = False
    """Sends one request for each path, in order, and ends; `seconds` does not count."""
    seed: int = 0


@dataclass(slots=True)
class Loaded:
    """What came back."""

    answered: int
    """With status 200, in the time that counts."""
    seconds: float
    latencies_ms: dict[str, float]
    """Of those: `p50`, `p99`, `max`."""
    statuses: dict[str, int] = field(default_factory=dict[str, int])
    """Of all requests that ended in the time that counts; `broken` for a connection that broke."""
    unsent: int = 0
    """Requests of an open loop for which no connection was free."""

    @property
    def per_s(self) -> float:
        return self.answered / self.seconds


def run(load: Load) -> Loaded:
    """Runs the load in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.serve.load"]
    done = subprocess.run(command, input=json.dumps(asdict(load)), stdout=subprocess.PIPE, text=True, check=True)
    return Loaded(**json.loads(done.stdout.splitlines()[-1]))


@dataclass(frozen=True, slots=True)
class _Body:
    content_type: str
    data: bytes


def _body(image: Path, form_field: str | None) -> _Body:
    if form_field is None:
        return _Body("application/octet-stream", image.read_bytes())
    boundary = "image-follows"
    head = f'--{boundary}\r\ncontent-disposition: form-data; name="{form_field}"; filename="{image.name}"\r\n'
    parts = head.encode() + b"content-type: image/jpeg\r\n\r\n", image.read_bytes(), f"\r\n--{boundary}--\r\n".encode()
    return _Body(f"multipart/form-data; boundary={boundary}", b"".join(parts))


class _Connection:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: "_Body") -> str:
        """The answer's status, or `broken`."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
            reader, writer = self._streams
            writer.write(
                f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: {body.content_type}\r\n"
                f"content-length: {len(body.data)}\r\n\r\n".encode()
            )
            writer.write(body.data)
            return await self._answer(reader)
        except (OSError, asyncio.IncompleteReadError):
            self._streams = None
            return "broken"

    async def _answer(self, reader: asyncio.StreamReader) -> str:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        first, *lines = head.split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if ": " in line)
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
            await reader.readexactly(2)
        else:
            await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self._streams = None
        return first.split()[1]


class _Sender:
    """The requests of one load."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._bodies = [_body(Path(image), load.form_field) for image in load.images]
        self._draw = random.Random(load.seed)
        self._weights = [1 / n for n in range(1, len(load.paths) + 1)] if load.zipf else None
        self._next = 0
        self._ends: list[tuple[float, float, str]] = []
        """(when it ended, how long it took, status) of each request."""
        self.unsent = 0

    async def send(self, connection: _Connection, path: str | None = None) -> None:
        body = self._bodies[self._next % len(self._bodies)]
        self._next += 1
        if path is None:
            path = self._draw.choices(self._load.paths, self._weights)[0]
        began_s = time.perf_counter()
        status = await connection.post(path, body)
        ended_s = time.perf_counter()
        self._ends.append((ended_s, ended_s - began_s, status))

    def result(self, from_s: float, until_s: float) -> Loaded:
        counted = [(took_s, status) for ended_s, took_s, status in self._ends if from_s <= ended_s <= until_s]
        answered = sorted(took_s for took_s, status in counted if status == "200")
        latencies = {"p50": _at(answered, 0.5), "p99": _at(answered, 0.99), "max": _at(answered, 1.0)}
        statuses = Counter(status for _, status in counted)
        return Loaded(len(answered), until_s - from_s, latencies, dict(statuses), self.unsent)


def _at(ordered: Sequence[float], share: float) -> float:
    """In milliseconds; 0 where there are none."""
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def _closed(load: Load, sender: _Sender) -> Loaded:
    from_s = time.perf_counter() + load.warm_up_s
    until_s = from_s + load.seconds

    async def client() -> None:
        connection = _Connection(load.url)
        while time.perf_counter() < until_s:
            await sender.send(connection)

    await asyncio.gather(*(client() for _ in range(load.clients)))
    return sender.result(from_s, until_s)


async def _once(load: Load, sender: _Sender) -> Loaded:
    paths = iter(load.paths)
    from_s = time.perf_counter()

    async def client() -> None:
        connection = _Connection(load.url)
        for path in paths:
            await sender.send(connection, path)

    await asyncio.gather(*(client() for _ in range(load.clients)))
    return sender.result(from_s, time.perf_counter())


async def _open(load: Load, rate: float, sender: _Sender) -> Loaded:
    free = [_Connection(load.url) for _ in range(load.clients)]
    sent: set[asyncio.Task[None]] = set()

    async def send(connection: _Connection) -> None:
        await sender.send(connection)
        free.append(connection)

    began_s = time.perf_counter()
    from_s = began_s + load.warm_up_s
    until_s = from_s + load.seconds
    number = 0
    while (now_s := time.perf_counter()) < until_s:
        if now_s < began_s + number / rate:
            await asyncio.sleep(began_s + number / rate - now_s)
            continue
        number += 1
        if not free:
            sender.unsent += 1
            continue
        task = asyncio.ensure_future(send(free.pop()))
        sent.add(task)
        task.add_done_callback(sent.discard)
    if sent:
        await asyncio.wait(sent, timeout=GRACE_S)
    return sender.result(from_s, until_s)


def main() -> None:
    load = Load(**json.load(sys.stdin))
    sender = _Sender(load)
    if load.once:
        work = _once(load, sender)
    elif load.rate is not None:
        work = _open(load, load.rate, sender)
    else:
        work = _closed(load, sender)
    print(json.dumps(asdict(asyncio.run(work))))


if __name__ == "__main__":
    main()
