"""A real S3 server process (moto's), and buckets on it."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.local.ports import free_ports
from tests.servers.ray_environment import ROOT

START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 10
START_TRIES = 3


@dataclass(frozen=True)
class S3Server:
    """A running server. It accepts any credentials, and forgets everything when it stops."""

    endpoint_url: str
    pid: int

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to reach this server, and nothing else, through boto3."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def create_bucket(self) -> str:
        """Makes an empty bucket and returns its URI."""
        bucket = f"test-{uuid.uuid4().hex[:16]}"
        request = urllib.request.Request(f"{self.endpoint_url}/{bucket}", method="PUT")
        # The server finds the account in the signature's text, which it does not check.
        request.add_header(
            "Authorization",
            "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0",
        )
        with _open(request):
            return f"s3://{bucket}"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the whole test run; tests keep apart by their buckets."""
    log = tmp_path_factory.mktemp("s3") / "server.log"
    with running_s3_server(log) as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a fresh bucket; this process's AWS environment leads to it during the test."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return s3_server.create_bucket()


@contextmanager
def running_s3_server(log: Path) -> Iterator[S3Server]:
    """Starts a server on a free port and ends it. Its output goes to `log`."""
    process, endpoint_url = _start(log)
    try:
        yield S3Server(endpoint_url, process.pid)
    finally:
        _stop(process)


def _start(log: Path) -> tuple[subprocess.Popen[bytes], str]:
    for _ in range(START_TRIES):  # another process may take the port that was free
        (port,) = free_ports(1)
        endpoint_url = f"http://127.0.0.1:{port}"
        with log.open("ab") as output:
            command = [sys.executable, "-m", "tests.servers.moto_s3", "-H", "127.0.0.1", "-p", str(port)]
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            if _wait_until_healthy(process, endpoint_url):
                return process, endpoint_url
        except BaseException:
            _stop(process)
            raise
        _stop(process)
    pytest.fail(f"the S3 server did not start:\n{log.read_text()[-4000:]}")


def _wait_until_healthy(process: subprocess.Popen[bytes], endpoint_url: str) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with _open(urllib.request.Request(f"{endpoint_url}/moto-api/data.json")):
                return process.poll() is None
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _open(request: urllib.request.Request):
    # Without the proxies of the environment: the server is on this machine.
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10)
