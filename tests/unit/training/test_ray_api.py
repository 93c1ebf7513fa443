"""Ray's HTTP answers, as Ray 2.60 gives them."""

import json

import httpx2
import pytest

from services.contracts.errors import ClusterUnavailable, InternalError
from services.training.ray_api import HttpRayApi, RayJob, RayStatus, Submission

JOB = "job_0-a1"


def api(status: int, body: object, seen: list[httpx2.Request] | None = None, token: str | None = None) -> HttpRayApi:
    """An API whose every request gets the same answer."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        if seen is not None:
            seen.append(request)
        text = body if isinstance(body, str) else json.dumps(body)
        return httpx2.Response(status, text=text)

    return HttpRayApi("http://ray:8265", token=token, transport=httpx2.MockTransport(answer))


def unreachable() -> HttpRayApi:
    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=request)

    return HttpRayApi("http://ray:8265", transport=httpx2.MockTransport(refuse))


async def test_a_submission_carries_what_the_dashboard_shows_and_reserves_no_cpu() -> None:
    seen: list[httpx2.Request] = []
    async with api(200, {"job_id": JOB, "submission_id": JOB}, seen, token="secret") as ray:
        await ray.submit(Submission(JOB, "python -m x", {"name": "flowers"}))
    assert (seen[0].method, seen[0].url.path) == ("POST", "/api/jobs/")
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert json.loads(seen[0].content) == {
        "submission_id": JOB,
        "entrypoint": "python -m x",
        "metadata": {"name": "flowers"},
        "runtime_env": {},
        "entrypoint_num_cpus": 0,
    }


async def test_a_submission_that_ray_has_already_is_as_good_as_submitted() -> None:
    refusal = f"Traceback …\nRuntimeError: … ValueError: Job with submission_id {JOB} already exists. Please use …"
    async with api(500, refusal) as ray:
        await ray.submit(Submission(JOB, "python -m x"))


async def test_any_other_error_of_ray_is_no_submission() -> None:
    async with api(500, "No available agent to submit job, please try again later.") as ray:
        with pytest.raises(ClusterUnavailable):
            await ray.submit(Submission(JOB, "python -m x"))


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"])
async def test_a_jobs_status_is_read(status: str) -> None:
    body = {"type": "SUBMISSION", "status": status, "message": None, "error_type": None, "entrypoint": "x"}
    async with api(200, body) as ray:
        assert await ray.job(JOB) == RayJob(RayStatus(status.lower()), "", None)


async def test_a_job_that_ray_does_not_know_is_none() -> None:
    async with api(404, f"Job {JOB} does not exist") as ray:
        assert await ray.job(JOB) is None
        assert await ray.logs(JOB) is None
        await ray.stop(JOB)


async def test_a_404_that_is_not_rays_says_nothing_about_the_job() -> None:
    async with api(404, "<html>nginx</html>") as ray:
        with pytest.raises(ClusterUnavailable):
            await ray.job(JOB)


@pytest.mark.parametrize("status", [301, 401, 502, 503])
async def test_a_cluster_that_answers_with_an_error_is_unavailable(status: int) -> None:
    async with api(status, "?") as ray:
        with pytest.raises(ClusterUnavailable):
            await ray.job(JOB)


async def test_a_cluster_that_does_not_answer_is_unavailable() -> None:
    async with unreachable() as ray:
        with pytest.raises(ClusterUnavailable, match="cannot be reached"):
            await ray.job(JOB)


async def test_an_answer_that_is_no_answer_is_unavailable() -> None:
    async with api(200, "<html>login</html>") as ray:
        with pytest.raises(ClusterUnavailable):
            await ray.job(JOB)


async def test_a_status_of_another_release_is_not_guessed() -> None:
    async with api(200, {"status": "HIBERNATING"}) as ray:
        with pytest.raises(InternalError, match="HIBERNATING"):
            await ray.job(JOB)


async def test_serve_applications_are_read() -> None:
    config = {"name": "trunk-1", "route_prefix": "/trunks/1"}
    body = {
        "applications": {
            "trunk-1": {"name": "trunk-1", "status": "RUNNING", "message": "", "deployed_app_config": config},
            "by-hand": {"name": "by-hand", "status": "DEPLOYING", "message": "wait"},
        },
        "proxies": {},
    }
    async with api(200, body) as ray:
        found = await ray.serve_applications()
    assert found["trunk-1"].config == config
    assert (found["by-hand"].status, found["by-hand"].config) == ("DEPLOYING", None)


async def test_no_applications_where_serve_does_not_run() -> None:
    async with api(200, {"controller_info": {}, "proxies": {}, "applications": {}, "target_capacity": None}) as ray:
        assert await ray.serve_applications() == {}
