"""A real Ray head on this machine, with its dashboard and Jobs API, as users start it: `ray start --head`."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import pytest

from services.local.ports import free_ports
from tests.servers.ray_environment import ROOT, ray_environment

_START_TIMEOUT_S = 120
_OBJECT_STORE_BYTES = 80 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LocalRay:
    """A running Ray head."""

    address: str
    """Of the GCS, for `ray.init` and RAY_ADDRESS."""
    dashboard_url: str
    env: dict[str, str]
    """For processes that are drivers in this cluster."""
    temp_dir: Path

    def processes(self) -> list[psutil.Process]:
        """All that run in it, its own included."""
        return _processes(self.temp_dir)


@pytest.fixture(scope="package")
def ray_local() -> Iterator[LocalRay]:
    """A Ray head with 8 logical CPUs of its own, gone with everything that it started after the folder whose conftest
    imports this: idle, it would take from the tests after it what several processes do."""
    # A Unix socket's path has at most 107 bytes, and Ray's lie deep: pytest's own folders are too long.
    temp_dir = Path(tempfile.mkdtemp(prefix="rk-", dir="/tmp"))
    gcs, dashboard, agent, metrics, runtime_env, client = free_ports(6)
    env = ray_environment()
    command = [
        Path(sys.executable).with_name("ray").as_posix(),
        *("start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"),
        *(f"--port={gcs}", f"--temp-dir={temp_dir}", "--num-cpus=8", f"--object-store-memory={_OBJECT_STORE_BYTES}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"),
        f"--runtime-env-agent-port={runtime_env}",
        *(f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"),
    ]
    log_path = temp_dir / "ray-start.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT
        )
    try:
        dashboard_url = f"http://127.0.0.1:{dashboard}"
        _wait_for_jobs_api(process, dashboard_url, log_path)
        address = f"127.0.0.1:{gcs}"
        yield LocalRay(address, dashboard_url, {**env, "RAY_ADDRESS": address}, temp_dir)
    finally:
        _kill_everything(process, temp_dir)
        shutil.rmtree(temp_dir, ignore_errors=True)


def _wait_for_jobs_api(process: subprocess.Popen[bytes], dashboard_url: str, log_path: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx2.HTTPError):
            # Submitting needs the agent as well, which this asks and which is up after the dashboard.
            if httpx2.get(f"{dashboard_url}/api/jobs/", timeout=5).is_success:
                return
        time.sleep(0.1)
    pytest.fail(f"Ray did not start:\n{log_path.read_text(errors='replace')}")


def _kill_everything(process: subprocess.Popen[bytes], temp_dir: Path) -> None:
    """Ends the head and all that belongs to its temp dir, workers that lost their parent included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=3)
    doomed = _processes(temp_dir)
    for each in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(doomed, timeout=10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)


def _processes(temp_dir: Path) -> list[psutil.Process]:
    return [each for each in psutil.process_iter() if _belongs_to(each, temp_dir)]


def _belongs_to(process: psutil.Process, temp_dir: Path) -> bool:
    """By its command line, or by an open file: workers rename themselves `ray::…` and drop their arguments."""
    try:
        if any(temp_dir.as_posix() in part for part in process.cmdline()):
            return True
        return process.name().startswith("ray::") and any(
            file.path.startswith(temp_dir.as_posix()) for file in process.open_files()
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False
