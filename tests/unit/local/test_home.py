"""Who holds a home, and what was left in it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from services.contracts.errors import Conflict
from services.local import ports
from services.local.home import StackHome, StackRecord, UnusableHome, new_marker
from services.local.ports import first_ephemeral, free_ports
from services.local.processes import MARKER_VARIABLE, end_processes, stack_processes
from services.local.ray_head import child_environment, choose_ray_ports, ray_command

UNIX_SOCKET_PATH_MAX = 107


def home_at(folder: Path) -> StackHome:
    home = StackHome(folder)
    home.prepare()
    return home


def record(**changes: object) -> StackRecord:
    own = psutil.Process()
    fields: dict[str, object] = {
        "marker": new_marker(),
        "pid": own.pid,
        "started_at_s": own.create_time(),
        "url": "http://127.0.0.1:8080",
        "ray_dashboard_url": "http://127.0.0.1:8265",
    }
    return StackRecord.model_validate({**fields, **changes})


def sleeper(**environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        env={**os.environ, **environment},
        start_new_session=True,
    )


def test_two_stacks_cannot_hold_one_home(tmp_path: Path) -> None:
    home = home_at(tmp_path)
    home.write_record(record())
    with home.locked():
        with pytest.raises(Conflict, match="already runs") as refused, StackHome(tmp_path).locked():
            pass
        assert "http://127.0.0.1:8080" in str(refused.value)
        assert "REKINDLE_HOME" in str(refused.value)
    with home.locked():
        pass


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    home, written = home_at(tmp_path), record(sessions=((5, 1.5),))
    assert home.read_record() is None
    home.write_record(written)
    assert home.read_record() == written


def test_a_record_that_cannot_be_read_is_no_record(tmp_path: Path) -> None:
    home = home_at(tmp_path)
    home.record_path.write_text("{")
    assert home.read_record() is None


def test_a_home_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnusableHome, match="REKINDLE_HOME"):
        StackHome(tmp_path / "file" / "home").prepare()


def test_rays_folder_is_short_private_and_of_this_home_only(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    temp = home_at(long).ray_temp
    socket = temp / "session_2026-11-23_04-00-30_076398_1234567" / "sockets" / "plasma_store.1"
    assert len(str(socket)) < UNIX_SOCKET_PATH_MAX
    assert temp.stat().st_mode & 0o077 == 0
    assert temp != home_at(tmp_path / "other").ray_temp
    temp.rmdir()
    StackHome(tmp_path / "other").ray_temp.rmdir()


def test_leftovers_are_found_by_marker_and_ended(tmp_path: Path) -> None:
    mine = record(pid=1, started_at_s=0.0)  # a supervisor that is gone
    marked, other = sleeper(**{MARKER_VARIABLE: mine.marker}), sleeper()
    try:
        found = stack_processes(mine)
        assert [process.pid for process in found] == [marked.pid]
        end_processes(found, grace_s=5)
        assert not psutil.pid_exists(marked.pid)
        assert other.poll() is None
    finally:
        for process in (marked, other):
            process.kill()
            process.wait()


def test_leftovers_are_found_by_session_but_not_if_the_number_is_anothers_now(tmp_path: Path) -> None:
    leader = sleeper()
    try:
        started_at_s = psutil.Process(leader.pid).create_time()
        same = record(pid=1, started_at_s=0.0, sessions=((leader.pid, started_at_s),))
        another = record(pid=1, started_at_s=0.0, sessions=((leader.pid, started_at_s - 100),))
        assert [process.pid for process in stack_processes(same)] == [leader.pid]
        assert stack_processes(another) == []
    finally:
        leader.kill()
        leader.wait()


def test_a_process_that_does_not_listen_is_killed() -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    deaf = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert deaf.stdout is not None
    deaf.stdout.readline()
    end_processes([psutil.Process(deaf.pid)], grace_s=0.2)
    assert not psutil.pid_exists(deaf.pid)
    deaf.stdout.close()


# --- Ray ------------------------------------------------------------------------------------------------------------


def test_ports_are_different_and_none_that_the_system_gives_away() -> None:
    found = free_ports(20)
    assert len(set(found)) == 20
    assert min(found) >= ports.FIRST
    assert max(found) < first_ephemeral()


def test_ports_that_are_taken_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "first_ephemeral", lambda: 0)
    monkeypatch.setattr(ports, "LEAST_COUNT", 2)
    monkeypatch.setattr(ports, "FIRST", free_ports(1)[0])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports.FIRST))
        with pytest.raises(OSError, match="2 free ports are wanted"):
            free_ports(2)


def test_ray_listens_on_loopback_behind_a_token(tmp_path: Path) -> None:
    command = ray_command(choose_ray_ports(), tmp_path)
    assert "--dashboard-host=127.0.0.1" in command
    assert "--node-ip-address=127.0.0.1" in command
    environment = child_environment({"PATH": "/bin"}, "marker", "secret", Path("/tmp/temp"))
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN"] == "secret"
    assert not any("secret" in argument for argument in command)


def test_the_environment_leads_to_no_other_cluster_and_to_this_python() -> None:
    inherited = {"PATH": "/bin", "RAY_ADDRESS": "10.0.0.1:6379", "OMP_NUM_THREADS": "4", "AWS_PROFILE": "mine"}
    environment = child_environment(inherited, "marker", "secret", Path("/tmp/temp"))
    assert "RAY_ADDRESS" not in environment
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert environment["OMP_NUM_THREADS"] == "4"  # who sets it means it
    assert environment["AWS_PROFILE"] == "mine"
