"""Finding and ending the processes of one stack: by what they carry and descend from, never by name.

A process belongs to a stack if it descends from the supervisor, carries the stack's marker in its environment, or is
in a session that the stack started. (Ray overwrites the environment of some processes and starts others in sessions
of their own: no single sign finds all.)
"""

import os
from collections.abc import Iterable

import psutil

from services.local.home import StackRecord

MARKER_VARIABLE = "REKINDLE_STACK"
START_TIME_TOLERANCE_S = 0.05


def start_time_s(pid: int) -> float | None:
    """When the process was started, Unix seconds; None where there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def stack_processes(record: StackRecord) -> list[psutil.Process]:
    """All living processes of the stack, without its supervisor and without the caller."""
    leaders = {pid for pid, started_at_s in record.sessions if not _is_another(pid, started_at_s)}
    found = {process for process in psutil.process_iter() if _belongs(process, record.marker, leaders)}
    for process in [psutil.Process(pid) for pid in _supervisor(record)]:
        found.update(_descendants(process))
    return [process for process in found if process.pid not in (record.pid, os.getpid()) and _lives(process)]


def end_processes(processes: Iterable[psutil.Process], grace_s: float) -> None:
    """Asks the processes to stop, and kills those that have not after `grace_s` seconds. Returns when all are gone."""
    processes = list(processes)
    for process in processes:
        _signal(process, kill=False)
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        _signal(process, kill=True)
    psutil.wait_procs(alive, timeout=grace_s)


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        if kill:
            process.kill()
        else:
            process.terminate()
    except psutil.NoSuchProcess:
        pass


def _supervisor(record: StackRecord) -> list[int]:
    return [] if _is_another(record.pid, record.started_at_s) or not psutil.pid_exists(record.pid) else [record.pid]


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _is_another(pid: int, started_at_s: float) -> bool:
    """Whether the number now belongs to a process started at another time. While a session has members, its leader's
    number is not given out again, so a number without a process is still the old session's."""
    now_s = start_time_s(pid)
    return now_s is not None and abs(now_s - started_at_s) > START_TIME_TOLERANCE_S


def _belongs(process: psutil.Process, marker: str, leaders: set[int]) -> bool:
    try:
        if os.getsid(process.pid) in leaders:
            return True
        return process.environ().get(MARKER_VARIABLE) == marker
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, PermissionError):
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
