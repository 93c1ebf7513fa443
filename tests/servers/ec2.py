"""An EC2 that runs out of machines: moto's server in this process, with a gate before it.

moto gives every machine that is asked for, and of `MaxCount` machines only `MinCount`. The gate refuses and limits
launches as a test says, in EC2's own words, and notes what was asked.
"""

import os
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl, urlencode

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

REGION = "us-east-1"
AMI = "ami-0123456789abcdef0"
KEY = "my-key"

Launch = dict[str, str]
"""The parameters of a RunInstances, as they were sent."""


@dataclass
class Shortage:
    """Launches that fit every field given get `left` machines, and then the code."""

    market: str | None = None
    instance_type: str | None = None
    subnet_id: str | None = None
    code: str = "InsufficientInstanceCapacity"
    left: int = 0

    def fits(self, launch: Launch) -> bool:
        asked = (market_of(launch), launch.get("InstanceType"), launch.get("SubnetId"))
        return all(
            mine in (None, theirs)
            for mine, theirs in zip((self.market, self.instance_type, self.subnet_id), asked, strict=True)
        )


def market_of(launch: Launch) -> str:
    """`spot` or `on-demand`."""
    return launch.get("InstanceMarketOptions.MarketType", "on-demand")


def pool_of(launch: Launch) -> tuple[str, str, str]:
    """Market, type and subnet."""
    return market_of(launch), launch["InstanceType"], launch["SubnetId"]


@dataclass
class FakeEc2:
    """The region, and what a test says of it."""

    url: str
    shortages: list[Shortage] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    """Every RunInstances that was no dry run, refused ones too."""

    def env(self) -> dict[str, str]:
        """What a process needs to reach it, and nothing else, through boto3."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def client(self, service: str = "ec2") -> Any:
        """A client of one of its services."""
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def subnets(self, *zones: str) -> list[str]:
        """The default VPC's subnets in the zones, in that order; of the whole region without."""
        found = {each["AvailabilityZone"]: each["SubnetId"] for each in self.client().describe_subnets()["Subnets"]}
        return [found[zone] for zone in zones or sorted(found)]

    def instances(self, *states: str) -> list[dict[str, Any]]:
        """The machines in the states, by default those that are there."""
        wanted = states or ("pending", "running")
        reservations = self.client().describe_instances()["Reservations"]
        return [each for one in reservations for each in one["Instances"] if each["State"]["Name"] in wanted]

    def pools_asked(self) -> list[tuple[str, str, str]]:
        """Of every launch: market, type and subnet."""
        return [pool_of(launch) for launch in self.launches]

    def reset(self) -> None:
        """As new."""
        self.shortages.clear()
        self.launches.clear()
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            urllib.request.Request(f"{self.url}/moto-api/reset", method="POST"), timeout=10
        ):
            pass


class _Gate:
    """A WSGI application before moto's."""

    def __init__(self, ec2: FakeEc2) -> None:
        self._ec2 = ec2
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if b"Action=RunInstances" in body and b"DryRun=true" not in body:
            launch = dict(parse_qsl(body.decode(), keep_blank_values=True))
            self._ec2.launches.append(launch)
            given = int(launch["MaxCount"])
            for shortage in self._ec2.shortages:
                if shortage.fits(launch):
                    given = min(given, shortage.left)
                    if given == 0:
                        return _refuse(shortage.code, start_response)
            for shortage in self._ec2.shortages:
                shortage.left -= given if shortage.fits(launch) else 0
            body = urlencode({**launch, "MinCount": str(given)}).encode()
        environ["wsgi.input"] = BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        return self._moto(environ, start_response)


def _refuse(code: str, start_response: Any) -> Iterable[bytes]:
    # EC2 calls a lack of capacity its own fault, which clients repeat by default.
    status = "500 Internal Server Error" if code.startswith("Insufficient") else "400 Bad Request"
    start_response(status, [("Content-Type", "text/xml")])
    error = f"<Error><Code>{code}</Code><Message>Played by a test.</Message></Error>"
    return [f"<Response><Errors>{error}</Errors><RequestID>1</RequestID></Response>".encode()]


class _Quiet(MotoRequestHandler):
    def log_request(self, *args: object) -> None:
        """Nothing: `launches` has what matters."""


@contextmanager
def running_ec2() -> Iterator[FakeEc2]:
    """Serves until the block ends."""
    ec2 = FakeEc2("")
    server = make_server("127.0.0.1", 0, _Gate(ec2), threaded=True, request_handler=_Quiet)
    ec2.url = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # half a second at every reset
            yield ec2
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def ec2_server() -> Iterator[FakeEc2]:
    """One for the whole run."""
    with running_ec2() as ec2:
        yield ec2


@pytest.fixture
def ec2(ec2_server: FakeEc2, monkeypatch: pytest.MonkeyPatch) -> FakeEc2:
    """Without machines, roles or buckets; this process's AWS environment leads to it during the test."""
    from ray.autoscaler._private.aws import utils

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in ec2_server.env().items():
        monkeypatch.setenv(name, value)
    ec2_server.reset()
    utils.resource_cache.cache_clear()  # of clients, for another endpoint perhaps
    return ec2_server
