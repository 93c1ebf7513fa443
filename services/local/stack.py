"""The supervisor: starts a Ray head and the gateway, keeps both running, and leaves nothing behind when it ends.

Ctrl-C and SIGTERM stop everything in order. If the supervisor itself is killed, the kernel kills what it started
(`tied`), and the next start in the same home ends what is left. Jobs that were running go on after the next start: the
reconciler finds them in the database and gives them a new attempt from their last checkpoint.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import httpx2
import psutil

from services.contracts.errors import Conflict, RekindleError
from services.local.children import Child, ChildKeepsFailing, Say, keep_running, log_tail
from services.local.home import StackHome, StackRecord, new_marker
from services.local.ports import LOOPBACK, free_ports
from services.local.processes import end_processes, stack_processes, start_time_s
from services.local.ray_head import RayPorts, child_environment, choose_ray_ports, ray_command
from services.runtime.ray_dashboard import dashboard_client
from services.runtime.settings import Settings

READY_WITHIN_S = 180.0
POLL_S = 0.2
PROBE_TIMEOUT_S = 5.0
LIVING_NODES = "/api/v0/nodes?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
"""Of Ray's state API."""
GATEWAY_STOP_S = 10.0
RAY_STOP_S = 8.0
LEFTOVER_GRACE_S = 1.5


class StackFailed(RekindleError):
    """The stack did not start; the message says why and shows the end of the log."""


@dataclass(slots=True)
class _Stack:
    """One run of the stack."""

    settings: Settings
    home: StackHome
    ports: RayPorts
    ray_token: str
    record: StackRecord
    say: Say
    gateway_pid: int | None = None

    def gateway_started(self, pid: int) -> None:
        self.gateway_pid = pid
        self.remember_session(pid)

    def remember_session(self, pid: int) -> None:
        """Notes a session, so that the next start finds its processes even if this one is killed."""
        started_at_s = start_time_s(pid)
        if started_at_s is not None:
            self.remember(sessions=(*self.record.sessions, (pid, started_at_s)))

    def remember(self, **changes: object) -> None:
        """Writes the record anew with these changes."""
        self.record = self.record.model_copy(update=changes)
        self.home.write_record(self.record)


def run_stack(settings: Settings, say: Say = print, *, ready: Callable[[str], None] | None = None) -> None:
    """Runs the stack until SIGINT or SIGTERM; returns when every process of it is gone.

    Args:
        say: Gets lines for the person at the terminal.
        ready: Called once with the base URL when requests are answered.

    Raises:
        Conflict: a stack already runs in this home, or the port is taken.
        UnusableHome: the home cannot be written.
        StackFailed: a part does not start.
    """
    home = StackHome(settings.home.absolute())
    home.prepare()
    with home.locked():
        _clean_up_after(home, say)
        home.prepare()
        settings = _with_port(settings)
        stack = _plan(settings, home, say)
        home.write_record(stack.record)
        try:
            asyncio.run(_supervise(stack, ready or _nothing))
        finally:
            end_processes(stack_processes(stack.record), LEFTOVER_GRACE_S)
            _put_away_ray_logs(home)
            home.record_path.unlink(missing_ok=True)


def _nothing(_url: str) -> None:
    pass


def _clean_up_after(home: StackHome, say: Say) -> None:
    record = home.read_record()
    if record is not None:
        left = stack_processes(record)
        if left:
            say(f"ending {len(left)} processes that an earlier stack in {home.home} left behind")
        end_processes(left, LEFTOVER_GRACE_S)
    _put_away_ray_logs(home)


def _put_away_ray_logs(home: StackHome) -> None:
    """Removes Ray's temporary folder, and keeps its last session's logs in the home."""
    latest = home.ray_temp / "session_latest" / "logs"
    if latest.is_dir():
        kept = home.logs / "ray"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(latest.resolve(), kept, symlinks=True, ignore_dangling_symlinks=True)
    shutil.rmtree(home.ray_temp, ignore_errors=True)


def _with_port(settings: Settings) -> Settings:
    """The settings with a port that is free now.

    Raises:
        Conflict: the port that was asked for is taken.
    """
    if settings.port == 0:
        return settings.model_copy(update={"port": free_ports(1)[0]})
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise Conflict(
                f"cannot listen on {settings.host}:{settings.port} ({error.strerror}): stop what uses it, or choose "
                "another with REKINDLE_PORT"
            ) from error
    return settings


def _plan(settings: Settings, home: StackHome, say: Say) -> _Stack:
    ports = choose_ray_ports()
    reachable = LOOPBACK if settings.host in ("0.0.0.0", "::", "localhost") else settings.host  # noqa: S104 - compared
    host = f"[{reachable}]" if ":" in reachable else reachable
    record = StackRecord(
        marker=new_marker(),
        pid=os.getpid(),
        started_at_s=psutil.Process().create_time(),
        url=f"http://{host}:{settings.port}",
        ray_dashboard_url=f"http://{LOOPBACK}:{ports.dashboard}",
    )
    return _Stack(settings, home, ports, secrets.token_hex(32), record, say)


def _children(stack: _Stack) -> tuple[Child, Child]:
    environment = child_environment(os.environ, stack.record.marker, stack.ray_token, stack.home.ray_temp)
    settings = {
        "REKINDLE_HOME": str(stack.home.home),
        "REKINDLE_HOST": stack.settings.host,
        "REKINDLE_PORT": str(stack.settings.port),
        "REKINDLE_RAY_DASHBOARD_URL": stack.record.ray_dashboard_url,
        "REKINDLE_RAY_TOKEN": stack.ray_token,
        "REKINDLE_SERVE_URL": f"http://{LOOPBACK}:{stack.ports.serve}",
        "REKINDLE_SERVE_HOST": LOOPBACK,
        "REKINDLE_SERVE_PORT": str(stack.ports.serve),
    }
    logs = stack.home.logs
    ray = Child(
        "Ray",
        ray_command(stack.ports, stack.home.ray_temp),
        environment,
        logs / "ray-head.log",
        stop_within_s=RAY_STOP_S,
    )
    gateway = Child(
        "the gateway",
        [sys.executable, "-m", "services.local.app"],
        {**environment, **settings},
        logs / "gateway.log",
        stop_within_s=GATEWAY_STOP_S,
    )
    return ray, gateway


async def _supervise(stack: _Stack, ready: Callable[[str], None]) -> None:
    stop, worked = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    ray, gateway = _children(stack)
    keep = partial(keep_running, worked=worked, say=stack.say)
    gateway_stopped = asyncio.Event()
    stack.say(f"starting Ray and the gateway (logs in {stack.home.logs})")
    try:
        async with asyncio.TaskGroup() as group:
            # Ray stops after the gateway, so that no request meets a cluster that is going away.
            end_leftovers = partial(_end_leftovers_of_ray, stack)
            group.create_task(keep(ray, stop=gateway_stopped, started=stack.remember_session, cleaned=end_leftovers))
            keeping = group.create_task(keep(gateway, stop=stop, started=stack.gateway_started, cleaned=_no_leftovers))
            keeping.add_done_callback(lambda _: gateway_stopped.set())
            watching = group.create_task(_announce_when_ready(stack, worked, (ray, gateway), ready))
            await stop.wait()
            watching.cancel()
            stack.say("stopping")
    except* (ChildKeepsFailing, StackFailed) as failures:
        raise StackFailed(str(failures.exceptions[0])) from failures.exceptions[0]


async def _no_leftovers() -> None:
    pass


async def _end_leftovers_of_ray(stack: _Stack) -> None:
    """Ends what a dead Ray head left behind."""
    left = [
        process for process in await asyncio.to_thread(stack_processes, stack.record) if not _is_gateway(process, stack)
    ]
    await asyncio.to_thread(end_processes, left, LEFTOVER_GRACE_S)


def _is_gateway(process: psutil.Process, stack: _Stack) -> bool:
    try:
        return os.getsid(process.pid) == stack.gateway_pid
    except ProcessLookupError:
        return False


async def _announce_when_ready(
    stack: _Stack, worked: asyncio.Event, children: tuple[Child, ...], ready: Callable[[str], None]
) -> None:
    """Waits until the Jobs API answers, work would find a node, and the gateway answers. Raises `StackFailed` after
    `READY_WITHIN_S`."""
    try:
        async with (
            asyncio.timeout(READY_WITHIN_S),
            dashboard_client(stack.record.ray_dashboard_url, token=stack.ray_token, timeout_s=PROBE_TIMEOUT_S) as ray,
            httpx2.AsyncClient(base_url=stack.record.url, timeout=PROBE_TIMEOUT_S, trust_env=False) as gateway,
        ):
            await _until_it_answers(ray, "/api/jobs/")
            # The dashboard answers before the node is there, which on a crowded machine may have to start again.
            await _until_it_answers(ray, LIVING_NODES, _lists_any)
            await _until_it_answers(gateway, "/readyz")
    except TimeoutError as error:
        tails = "\n".join(f"--- {child.log} ---\n{log_tail(child.log)}" for child in children)
        raise StackFailed(f"not ready after {READY_WITHIN_S:g} s:\n{tails}") from error
    worked.set()
    stack.remember(ready=True)
    ready(stack.record.url)


async def _until_it_answers(
    client: httpx2.AsyncClient, path: str, suffices: Callable[[httpx2.Response], bool] = lambda _: True
) -> None:
    while True:
        with contextlib.suppress(httpx2.TransportError):
            response = await client.get(path)
            if response.is_success and suffices(response):
                return
        await asyncio.sleep(POLL_S)


def _lists_any(response: httpx2.Response) -> bool:
    """Of an answer of Ray's state API: whether it lists anything."""
    return bool(response.json()["data"]["result"]["result"])
