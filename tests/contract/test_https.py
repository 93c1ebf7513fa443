"""A gateway that speaks HTTPS: real connections, with a certificate of its own making."""

import datetime as dt
import ipaddress
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.local.ports import free_ports
from tests.cluster.attempts import wait_until

STARTED_WITHIN_S = 60


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate and key for 127.0.0.1, signed by itself."""
    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def gateway(folder: Path, port: int, certificate: Path, key: Path) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "REKINDLE_HOME": str(folder),
        "REKINDLE_INFERENCE_PORT": str(port),
        "REKINDLE_TLS_CERTIFICATE": str(certificate),
        "REKINDLE_TLS_KEY": str(key),
    }
    command = [sys.executable, "-m", "services.inference.main"]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def port(pem: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_ports(1)[0]
    context = ssl.create_default_context(cafile=pem[0])
    with gateway(tmp_path_factory.mktemp("home"), port, *pem) as process:

        def answers() -> bool:
            assert process.poll() is None
            try:
                return httpx2.get(f"https://127.0.0.1:{port}/healthz", verify=context, trust_env=False).is_success
            except httpx2.ConnectError:
                return False

        try:
            wait_until(answers, STARTED_WITHIN_S)
            yield port
        finally:
            process.terminate()
            process.wait(30)


def test_who_trusts_the_certificate_is_answered_and_nobody_by_plain_http(port: int, pem: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(cafile=pem[0])
    url = f"https://127.0.0.1:{port}/readyz"
    assert httpx2.get(url, verify=context, trust_env=False).json()["status"] == "ready"
    with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx2.get(url, trust_env=False)
    with pytest.raises(httpx2.TransportError):
        httpx2.get(url.replace("https", "http"), trust_env=False)


def test_a_key_of_another_certificate_is_told_at_the_start(tmp_path: Path, pem: tuple[Path, Path]) -> None:
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "other.pem").write_bytes(other)
    with gateway(tmp_path / "home", free_ports(1)[0], pem[0], tmp_path / "other.pem") as process:
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(30) != 0
    assert "REKINDLE_TLS_CERTIFICATE and REKINDLE_TLS_KEY cannot be used" in said
    assert "Traceback" not in said
