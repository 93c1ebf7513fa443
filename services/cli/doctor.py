"""`rekindle doctor`: whether a server can be used from here, and if not, what to do."""

import struct
import zlib
from collections.abc import Iterator
from enum import StrEnum
from importlib.metadata import version
from typing import Annotated

import typer
from rich.text import Text

from services.cli.session import AsJson, client_of, print_json, stdout
from services.client import ApiError, ClientError, Rekindle
from services.contracts.base import Contract
from services.contracts.jobs import JobState

PATIENCE_S = 3.0
"""Whoever asks for a diagnosis does not want failures to be waited out."""
SKEW_S = 60.0
"""S3 refuses signatures that are 15 minutes off; tokens and presigned URLs are less patient."""
NEWEST = 100
"""Jobs that are looked at."""
SHOWN = 3
"""Of those that wait."""

app = typer.Typer(add_completion=False)


class Verdict(StrEnum):
    """What a look at something gave."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILED: "red"}


class Finding(Contract):
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    message: str


@app.command()
def run(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Also asks this model to label an image.")] = None,
    as_json: AsJson = False,
) -> None:
    """Looks at a server from here: whether it answers, what it cannot reach, whether the key is good, what jobs need.

    Exit status 1 where something failed.
    """
    client = client_of(context, patience_s=PATIENCE_S)
    found: list[Finding] = []
    for finding in examine(client, model):
        found.append(finding)
        if not as_json:
            verdict = Text(f"{finding.verdict:8}", style=_STYLES[finding.verdict])
            stdout().print(verdict, Text(f"{finding.what}: {finding.message}"), soft_wrap=True)
    if as_json:
        print_json(found)
    if any(finding.verdict is Verdict.FAILED for finding in found):
        raise typer.Exit(1)


def examine(client: Rekindle, model: str | None = None) -> Iterator[Finding]:
    """One finding after the other; none that would only repeat the one before."""
    try:
        server = client.health()
    except ClientError as error:
        yield Finding(what="server", verdict=Verdict.FAILED, message=str(error))
        return
    yield Finding(what="server", verdict=Verdict.OK, message=f"answers in {1000 * server.answered_s:.0f} ms")
    yield _release(server.release)
    if server.clock_ahead_s is not None and abs(server.clock_ahead_s) > SKEW_S:
        message = f"the server's is {server.clock_ahead_s:+.0f} s from this machine's: set the one that is wrong"
        yield Finding(what="clock", verdict=Verdict.WARNING, message=message)
    yield from _reached(client)
    key = _key(client)
    yield key
    if key.verdict is Verdict.OK:
        yield from _jobs(client)
        if model is not None:
            yield _prediction(client, model)


def _release(theirs: str) -> Finding:
    ours = version("rekindle")
    if theirs == ours:
        return Finding(what="release", verdict=Verdict.OK, message=theirs)
    message = f"the server is {theirs}, this client {ours}: where they misunderstand each other, update the older one"
    return Finding(what="release", verdict=Verdict.WARNING, message=message)


_HINTS = {
    "database": "jobs and models are known to nobody: see to REKINDLE_DATABASE_URL and its server",
    "bucket": "nothing can be read or kept: see to REKINDLE_BUCKET, its credentials and its store",
    "ray": "jobs are accepted and wait: see to the Ray head and its token",
    "serve": "predictions wait, then get 503: they come when the first version is published, or the head is back",
}


def _reached(client: Rekindle) -> Iterator[Finding]:
    try:
        ready = client.readiness()
    except ApiError as error:
        failed = error.details.get("failed")
        reasons = failed if isinstance(failed, dict) else {"server": error.message}
        for name, reason in reasons.items():
            yield Finding(what=name, verdict=Verdict.FAILED, message=_with_hint(name, str(reason)))
        return
    except ClientError as error:
        yield Finding(what="server", verdict=Verdict.FAILED, message=str(error))
        return
    for name in ready.checks:
        yield Finding(what=name, verdict=Verdict.OK, message="the server reaches it")
    for name, reason in ready.unavailable.items():
        yield Finding(what=name, verdict=Verdict.WARNING, message=_with_hint(name, reason))


def _with_hint(name: str, reason: str) -> str:
    return f"{reason}; {_HINTS[name]}" if name in _HINTS else reason


def _key(client: Rekindle) -> Finding:
    try:
        next(client.models.list(), None)
    except ClientError as error:
        return Finding(what="key", verdict=Verdict.FAILED, message=str(error))
    return Finding(what="key", verdict=Verdict.OK, message="may read models and jobs")


def _jobs(client: Rekindle) -> Iterator[Finding]:
    active = [job for job in client.training_jobs.page(limit=NEWEST).items if not job.state.is_terminal]
    waiting = [job for job in active if job.state is JobState.WAITING_FOR_CAPACITY]
    for job in waiting[:SHOWN]:
        why = job.waiting.sentence if job.waiting is not None else job.reason
        yield Finding(what="job", verdict=Verdict.WARNING, message=f"{job.id} waits for a machine: {why}")
    counts = f"of the newest {NEWEST}, {len(active)} are not over, and {len(waiting)} wait for a machine"
    yield Finding(what="jobs", verdict=Verdict.OK, message=counts)


def _prediction(client: Rekindle, model: str) -> Finding:
    try:
        answer = client.predict(model, _picture())
    except ClientError as error:
        return Finding(what="prediction", verdict=Verdict.FAILED, message=str(error))
    return Finding(what="prediction", verdict=Verdict.OK, message=f"answered by {model} version {answer.version}")


def _picture(side: int = 32) -> bytes:
    """A grey PNG: the client has no library that could draw one."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes([128]) * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
