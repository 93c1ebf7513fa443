"""What the gateway asks of a Ray cluster: its Jobs API and its Serve REST API, over plain HTTP.

Ray itself is not imported. A cluster that cannot be reached, or that answers with an error of its own, raises
`ClusterUnavailable`, which says nothing about whether its jobs live.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from services.contracts.errors import ClusterUnavailable, InternalError
from services.runtime.ray_dashboard import dashboard_client

DEFAULT_TIMEOUT_S = 10.0
SUBMIT_TIMEOUT_S = 30.0
MAX_LOG_CHARACTERS = 4_000_000
HTTP_NOT_FOUND = 404

Parsed = TypeVar("Parsed")


class RayStatus(StrEnum):
    """What Ray says about an attempt, or why it says nothing."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    NOT_FOUND = "not_found"
    """The cluster answered, and knows no such job."""
    UNREACHABLE = "unreachable"
    """The cluster did not answer."""


@dataclass(frozen=True, slots=True)
class RayJob:
    """A Ray job as the Jobs API shows it. Never `NOT_FOUND` or `UNREACHABLE`."""

    status: RayStatus
    message: str
    error_type: str | None
    """Ray's own class of failure, e.g. `JOB_SUPERVISOR_ACTOR_START_TIMEOUT`; null for the entrypoint's."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A Ray job to start."""

    submission_id: str
    entrypoint: str
    metadata: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class ServeApplication:
    """One Serve application as observed."""

    status: str
    message: str
    config: dict[str, JsonValue] | None
    """Exactly what was submitted; null where it was not deployed by config."""


class RayApi(Protocol):
    """The cluster as the reconciler and the log route see it. Every method raises `ClusterUnavailable`."""

    async def submit(self, submission: Submission) -> None:
        """Starts a Ray job. A submission id that Ray knows already is no error: the job was submitted before."""
        ...

    async def job(self, submission_id: str) -> RayJob | None:
        """The job, or None where a cluster that answers knows no such job."""
        ...

    async def stop(self, submission_id: str) -> None:
        """Asks the job to stop. One that is unknown or over is no error."""
        ...

    async def logs(self, submission_id: str) -> str | None:
        """The driver's log so far (its end, where it is very long), or None where Ray knows no such job."""
        ...

    async def serve_applications(self) -> dict[str, ServeApplication]:
        """Serve's applications by name; empty where Serve is not running."""
        ...

    async def deploy(self, config: Mapping[str, JsonValue]) -> None:
        """Makes Serve's applications those of the config; applications that it does not name are deleted."""
        ...


class _JobDetails(BaseModel):
    model_config = ConfigDict(extra="ignore")

    status: str
    message: str | None = None
    error_type: str | None = None


class _Logs(BaseModel):
    model_config = ConfigDict(extra="ignore")

    logs: str


class _ApplicationDetails(BaseModel):
    model_config = ConfigDict(extra="ignore")

    status: str
    message: str = ""
    deployed_app_config: dict[str, JsonValue] | None = None


class _ServeDetails(BaseModel):
    model_config = ConfigDict(extra="ignore")

    applications: dict[str, _ApplicationDetails] = Field(default_factory=dict[str, _ApplicationDetails])


_JOB = TypeAdapter(_JobDetails)
_LOGS = TypeAdapter(_Logs)
_SERVE = TypeAdapter(_ServeDetails)


class HttpRayApi:
    """`RayApi` over the dashboard's HTTP port."""

    def __init__(
        self, dashboard_url: str, *, token: str | None = None, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        """`dashboard_url` is like `http://127.0.0.1:8265`; `token` is Ray's bearer token where it asks for one."""
        self._client = dashboard_client(dashboard_url, token=token, timeout_s=DEFAULT_TIMEOUT_S, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._client.aclose()

    async def submit(self, submission: Submission) -> None:
        """See `RayApi.submit`."""
        body: dict[str, JsonValue] = {
            "submission_id": submission.submission_id,
            "entrypoint": submission.entrypoint,
            "metadata": dict(submission.metadata),
            "runtime_env": {},
            "entrypoint_num_cpus": 0,
        }
        try:
            await self._request("POST", "/api/jobs/", body=body, timeout_s=SUBMIT_TIMEOUT_S)
        except ClusterUnavailable as error:
            # Ray answers a duplicate with status 500 and a traceback, so the job itself is asked for.
            if "already exists" not in str(error.details.get("body", "")):
                raise

    async def job(self, submission_id: str) -> RayJob | None:
        """See `RayApi.job`."""
        response = await self._look_up("GET", f"/api/jobs/{quote(submission_id, safe='')}")
        if response is None:
            return None
        details = _parse(_JOB, response)
        try:
            status = RayStatus(details.status.lower())
        except ValueError as error:
            raise InternalError(f"Ray reports an unknown job status {details.status!r}") from error
        return RayJob(status=status, message=details.message or "", error_type=details.error_type)

    async def stop(self, submission_id: str) -> None:
        """See `RayApi.stop`."""
        await self._look_up("POST", f"/api/jobs/{quote(submission_id, safe='')}/stop")

    async def logs(self, submission_id: str) -> str | None:
        """See `RayApi.logs`."""
        path = f"/api/jobs/{quote(submission_id, safe='')}/logs"
        response = await self._look_up("GET", path, timeout_s=SUBMIT_TIMEOUT_S)
        return None if response is None else _parse(_LOGS, response).logs[-MAX_LOG_CHARACTERS:]

    async def serve_applications(self) -> dict[str, ServeApplication]:
        """See `RayApi.serve_applications`."""
        response = await self._request("GET", "/api/serve/applications/", timeout_s=SUBMIT_TIMEOUT_S)
        details = _parse(_SERVE, response)
        return {
            name: ServeApplication(status=each.status, message=each.message, config=each.deployed_app_config)
            for name, each in details.applications.items()
        }

    async def deploy(self, config: Mapping[str, JsonValue]) -> None:
        """See `RayApi.deploy`. The first deployment starts Serve, which takes several seconds."""
        await self._request("PUT", "/api/serve/applications/", body=dict(config), timeout_s=SUBMIT_TIMEOUT_S * 2)

    async def _look_up(self, method: str, path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> httpx2.Response | None:
        """The response about one job, or None where the Jobs API knows no such job."""
        try:
            return await self._request(method, path, timeout_s=timeout_s)
        except ClusterUnavailable as error:
            # Only the Jobs API's own words count: a proxy in front of a dead dashboard answers 404, too.
            if error.details.get("status") == HTTP_NOT_FOUND and "does not exist" in str(error.details.get("body")):
                return None
            raise

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: dict[str, JsonValue] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> httpx2.Response:
        """The response of a request that succeeded; anything else is `ClusterUnavailable`."""
        try:
            response = await self._client.request(method, path, json=body, timeout=timeout_s)
        except httpx2.HTTPError as error:
            raise ClusterUnavailable(
                f"the Ray cluster at {self._client.base_url} cannot be reached: {type(error).__name__} {error}".rstrip()
            ) from error
        if not response.is_success:
            raise ClusterUnavailable(
                f"the Ray cluster answered {method} {path} with status {response.status_code}",
                {"status": response.status_code, "body": response.text[-4000:]},
            )
        return response


def _parse(adapter: TypeAdapter[Parsed], response: httpx2.Response) -> Parsed:
    try:
        return adapter.validate_json(response.content)
    except ValidationError as error:
        raise ClusterUnavailable(
            f"the Ray cluster answered {response.request.url} with something else: {error}"
        ) from error
