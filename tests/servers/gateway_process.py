"""Training gateways as real processes, to be killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from services.local.ports import free_ports

START_TIMEOUT_S = 90
LOG_SHOWN_CHARACTERS = 8000


@dataclass
class GatewayProcess:
    """`python -m services.training.main` on a port of its own, which it keeps over restarts."""

    name: str
    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self) -> "GatewayProcess":
        """Returns at once; `wait_ready` waits."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("REKINDLE_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.training.main"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean | self.environment | {"REKINDLE_PORT": str(self.port)},
            )
        return self

    def wait_ready(self) -> "GatewayProcess":
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with suppress(httpx2.HTTPError):
                if httpx2.get(f"{self.url}/readyz", timeout=5, trust_env=False).is_success:
                    return self
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def leads(self) -> bool:
        """Whether the last that it said about leading was that it does."""
        said = [line for line in self.log.read_text().splitlines() if "leading" in line]
        return bool(said) and "reconciler.leading" in said[-1]


@contextmanager
def gateways(
    folder: Path, database_url: str, ray_url: str, count: int = 1, **settings: str
) -> Iterator[list[GatewayProcess]]:
    """Gateways on one database and one bucket, started; killed at the end."""
    environment = {
        "REKINDLE_HOME": str(folder / "home"),
        "REKINDLE_BUCKET": (folder / "bucket").as_uri(),
        "REKINDLE_DATABASE_URL": database_url,
        "REKINDLE_RAY_DASHBOARD_URL": ray_url,
        "REKINDLE_RECONCILE_INTERVAL_S": "0.1",
        "REKINDLE_LEASE_S": "2",
        "REKINDLE_RETRY_INITIAL_S": "0.1",
        "REKINDLE_RETRY_MAX_S": "0.5",
        "REKINDLE_MAX_RUNNING_JOBS": "100",
        "REKINDLE_SPARE_DRIVER": "false",
        **settings,
    }
    started = [GatewayProcess(f"gateway-{number}", folder, environment).start() for number in range(count)]
    try:
        for gateway in started:
            gateway.wait_ready()
        yield started
    except BaseException:
        for gateway in started:  # pytest shows it with the failure
            print(f"--- the end of {gateway.log}\n{gateway.log.read_text()[-LOG_SHOWN_CHARACTERS:]}")
        raise
    finally:
        for gateway in started:
            gateway.kill()
