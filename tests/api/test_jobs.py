"""Training jobs over HTTP, driven to their end by the reconciler on a cluster that the tests play."""

import asyncio
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.errors import Fenced
from services.contracts.ids import JobId, TrunkId
from services.contracts.jobs import (
    CapacityWait,
    EpochMetrics,
    FailureClass,
    Fence,
    JobEventType,
    JobKind,
    JobOutcome,
    JobRecord,
    JobState,
    Machine,
    MachineWork,
    Progress,
    Stage,
    StageTiming,
    TrainerRecord,
)
from services.contracts.receipts import Receipt
from services.runtime.database import Database
from services.runtime.database.leases import LeaseStore
from services.runtime.prices import read_prices
from services.training.models import queries as model_queries
from services.training.ray_api import RayStatus
from services.training.reconciler.actor import Actor
from services.training.reconciler.loop import LEASE_NAME, Reconciler
from services.training.reconciler.policy import SILENCE
from services.training.reconciler.spare import SpareKeeper
from services.training.reconciler.transitions import LeasedDatabase
from tests.servers.choices import CHOICE
from tests.servers.fake_ray import FakeRay
from tests.servers.training import TrainingGateway, eventually, make_manifest, problem, training_gateway


def epoch(number: int, epochs: int = 3) -> EpochMetrics:
    return EpochMetrics(
        epoch=number,
        epochs=epochs,
        train_loss=1 / number,
        train_accuracy=0.5,
        validation_loss=None,
        validation_accuracy=None,
    )


def auto_with(weights: str) -> dict[str, Any]:
    """A choice between two backbones, the second with weights in a file."""
    candidates = [{"backbone": "rekindle_tiny"}, {"backbone": "resnet50", "weights": {"uri": weights}}]
    return {"backbone": "auto", "candidates": candidates}


# --- accepting ------------------------------------------------------------------------------------------------------


async def test_an_accepted_job_is_in_the_bucket_with_all_that_it_needs(each_gateway: TrainingGateway) -> None:
    job = await each_gateway.job(model_name="roses", seed=7)
    record = JobRecord.model_validate_json(each_gateway.store.get(names.job_spec(JobId(job["id"]))))
    assert (record.kind, record.model_name) == (JobKind.TRAIN, "roses")
    assert record.spec is not None
    assert record.spec.seed == 7
    assert record.source_uri == each_gateway.images()
    assert job["state"] == "queued"
    assert (await each_gateway.read(job["id"]))["spec"] == job["spec"]


async def test_the_model_has_the_datasets_name_by_default(gateway: TrainingGateway) -> None:
    assert (await gateway.job())["model_name"] == "flowers"


@pytest.mark.parametrize(
    ("spec", "status", "code", "said"),
    [
        ({"backbone": "alexnet"}, 422, "validation_failed", "mobilenet_v2"),
        ({"backbone": "inception_v3", "image_size": 32}, 422, "validation_failed", "use 75 or more"),
        ({"resources": {"market": "cheap"}}, 422, "validation_failed", "on_demand"),
        ({"resources": {"on_demand_after_s": 60}}, 422, "validation_failed", "set market 'spot'"),
        ({"resources": {"market": "spot", "on_demand_after_s": -1}}, 422, "validation_failed", "on_demand_after_s"),
        ({"resources": {"accelerator": "a, b"}}, 422, "validation_failed", "accelerator"),
        ({"weights": "imagenet"}, 422, "validation_failed", "bundled"),
        ({"epoch": 3}, 422, "validation_failed", "epoch"),
        ({"model_name": "base"}, 400, "invalid_request", "choose another"),
        ({"model_name": "No Name"}, 422, "validation_failed", "model_name"),
        ({"weights": {"uri": "s3://elsewhere/x.h5"}}, 403, "source_not_allowed", "s3://mine/"),
        ({"weights": {"uri": "file:///nowhere/x.h5"}}, 422, "weights_unusable", "file:///nowhere/x.h5"),
        ({"backbone": "auto", "weights": "bundled"}, 422, "validation_failed", "name `candidates`"),
        ({"backbone": "auto", "candidates": [{"backbone": "resnet50"}]}, 422, "validation_failed", "at least 2"),
        (auto_with("s3://mine/x.h5") | {"backbone": "resnet50"}, 422, "validation_failed", "backbone is resnet50"),
        (auto_with("s3://elsewhere/x.h5"), 403, "source_not_allowed", "s3://mine/"),
        (auto_with("file:///nowhere/x.h5"), 422, "weights_unusable", "file:///nowhere/x.h5"),
    ],
)
async def test_a_bad_spec_is_refused_and_starts_nothing(
    tmp_path: Path, empty_sqlite_url: str, spec: dict[str, Any], status: int, code: str, said: str
) -> None:
    async with training_gateway(tmp_path, empty_sqlite_url, allowed_sources=("s3://mine/",)) as gateway:
        body = {"dataset_id": await gateway.dataset(), "backbone": "rekindle_tiny"} | spec
        response = await gateway.client.post("/v1/training-jobs", json=body)
        assert said in problem(response, status, code)["detail"]
        assert (await gateway.client.get("/v1/training-jobs")).json()["items"] == []
        assert list(gateway.store.list("jobs/")) == []


async def test_an_unknown_dataset_is_refused(gateway: TrainingGateway) -> None:
    for dataset_id in ("ds_" + "0" * 24, "nonsense", "", "\0", "é" * 80):
        response = await gateway.client.post("/v1/training-jobs", json={"dataset_id": dataset_id})
        problem(response, 404, "not_found")


async def test_an_upload_that_is_not_complete_is_refused(gateway: TrainingGateway) -> None:
    body = {"name": "flowers", "source": {"type": "upload"}}
    dataset = (await gateway.client.post("/v1/datasets", json=body)).json()
    response = await gateway.client.post("/v1/training-jobs", json={"dataset_id": dataset["id"]})
    assert "/complete" in problem(response, 409, "dataset_not_ready")["detail"]


# --- repeating ------------------------------------------------------------------------------------------------------


async def test_twenty_requests_at_a_time_with_one_key_make_one_job(each_gateway: TrainingGateway) -> None:
    body = {"dataset_id": await each_gateway.dataset(), "backbone": "rekindle_tiny"}
    headers = {"Idempotency-Key": "one"}
    responses = await asyncio.gather(
        *(each_gateway.client.post("/v1/training-jobs", json=body, headers=headers) for _ in range(20))
    )
    assert {response.status_code for response in responses} == {201}
    (job_id,) = {response.json()["id"] for response in responses}
    listed = (await each_gateway.client.get("/v1/training-jobs")).json()["items"]
    assert [job["id"] for job in listed] == [job_id]
    specs = [info.key for info in each_gateway.store.list("jobs/") if info.key.endswith("/spec.json")]
    assert specs == [names.job_spec(JobId(job_id))]
    await each_gateway.attempt(job_id)
    assert [each.metadata["job_id"] for each in each_gateway.ray.submissions] == [job_id]
    accepted = [event for event in await each_gateway.events(job_id) if event["message"] == "Accepted."]
    assert len(accepted) == 1


async def test_a_key_with_another_body_is_refused_and_names_what_it_made(gateway: TrainingGateway) -> None:
    body = {"dataset_id": await gateway.dataset(), "backbone": "rekindle_tiny"}
    headers = {"Idempotency-Key": "one"}
    first = (await gateway.client.post("/v1/training-jobs", json=body, headers=headers)).json()
    response = await gateway.client.post("/v1/training-jobs", json=body | {"seed": 1}, headers=headers)
    assert problem(response, 422, "idempotency_key_reused")["details"] == {"resource_id": first["id"]}


async def test_a_key_is_free_again_after_a_refusal(gateway: TrainingGateway) -> None:
    headers = {"Idempotency-Key": "one"}
    body = {"dataset_id": await gateway.dataset(), "backbone": "rekindle_tiny"}
    refused = await gateway.client.post("/v1/training-jobs", json=body | {"model_name": "base"}, headers=headers)
    problem(refused, 400, "invalid_request")
    assert (await gateway.client.post("/v1/training-jobs", json=body, headers=headers)).status_code == 201


async def test_requests_without_a_key_are_different_requests(gateway: TrainingGateway) -> None:
    assert (await gateway.job())["id"] != (await gateway.job())["id"]


# --- the good way ---------------------------------------------------------------------------------------------------


async def test_a_job_from_acceptance_to_a_published_model(each_gateway: TrainingGateway) -> None:
    gateway = each_gateway
    job_id = (await gateway.job())["id"]
    attempt = await gateway.attempt(job_id)

    (submission,) = gateway.ray.submissions
    assert shlex.split(submission.entrypoint) == [
        *("python", "-m", "ray_cluster.train.attempt"),
        *("--bucket", gateway.store.uri, "--job", job_id, "--attempt", "1"),
    ]
    assert submission.metadata["model_name"] == "flowers"
    assert Fence.model_validate_json(gateway.store.get(names.job_fence(JobId(job_id)))).attempt == 1

    attempt.run()
    running = await gateway.job_in(job_id, "preparing")
    assert (running["attempt"], running["submission_id"]) == (1, f"{job_id}-a1")

    started = StageTiming(stage=Stage.FEATURES, attempt=1, started_at=utc_now(), finished_at=None)
    attempt.report(JobEventType.STAGE, Stage.FEATURES, started, "features: started")
    progress = Progress(stage=Stage.FEATURES, done=3, total=6, unit="images")
    attempt.report(JobEventType.PROGRESS, Stage.FEATURES, progress, "3 of 6 images")
    attempt.report(JobEventType.WARNING, Stage.FEATURES, {"code": "few"}, "few images")
    for number in (1, 2, 3):
        attempt.report(JobEventType.EPOCH, Stage.FIT, epoch(number), f"epoch {number}")
    training = await gateway.job_in(job_id, "training")
    training = await eventually(lambda: reads(gateway, job_id, epoch=3))
    assert training["warnings"] == ["few images"]
    assert training["progress"] == {"stage": "fit", "done": 3, "total": 3, "unit": "epochs"}
    assert [stage["stage"] for stage in training["stages"]] == ["features"]

    manifest = attempt.publish()
    done = await gateway.job_in(job_id, "succeeded")
    assert done["result"] == {"model_name": "flowers", "version": 1, "accuracy": 0.9, "evaluated_split": "test"}
    assert done["finished_at"] is not None
    assert done["failure"] is None

    metrics = (await gateway.client.get(f"/v1/training-jobs/{job_id}/metrics")).json()
    assert [each["epoch"] for each in metrics["epochs"]] == [1, 2, 3]
    version = (await gateway.client.get("/v1/models/flowers/versions/1")).json()
    assert version["weights_sha256"] == manifest.tail_sha256
    outcome = JobOutcome.model_validate_json(gateway.store.get(names.job_outcome(JobId(job_id))))
    assert (outcome.state, outcome.attempt) == (JobState.SUCCEEDED, 1)

    events = await gateway.events(job_id)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    moves = [event["state"] for event in events if event["type"] == "state"]
    assert moves == ["queued", "queued", "preparing", "training", "succeeded"]
    assert len(gateway.ray.submissions) == 1


async def test_the_receipt_has_the_machines_that_the_attempts_told_of(gateway: TrainingGateway) -> None:
    job_id = (await gateway.job())["id"]
    attempt = await gateway.attempt(job_id)
    attempt.run()
    machine = Machine(node_id="a" * 56, instance_type="g4dn.xlarge", market="spot")
    began = utc_now() - timedelta(hours=1)
    work = MachineWork(machine=machine, began_at=began, ended_at=began + timedelta(minutes=30), busy_s=60)
    begun = StageTiming(stage=Stage.FEATURES, attempt=1, started_at=began, finished_at=None)
    attempt.report(JobEventType.STAGE, Stage.FEATURES, begun)
    ended = begun.model_copy(update={"finished_at": work.ended_at, "compute_s": 60.0, "machines": [work]})
    attempt.report(JobEventType.STAGE, Stage.FEATURES, ended)
    lost = TrainerRecord(stage=Stage.FIT, machine=machine.model_copy(update={"node_id": "b" * 56}), began_at=utc_now())
    gateway.store.put(names.attempt_trainer(JobId(job_id), 1, 1), lost.model_dump_json().encode())
    attempt.publish()
    await gateway.job_in(job_id, "succeeded")
    answer = await gateway.client.get(f"/v1/training-jobs/{job_id}/receipt")
    assert answer.status_code == 200, answer.text
    receipt = Receipt.model_validate_json(answer.content)
    price = read_prices().find("g4dn.xlarge")
    assert price is not None
    assert price.spot is not None
    assert [each.machine.node_id[0] for each in receipt.machines] == ["a", "b"]
    assert receipt.machines[0].cost == pytest.approx(price.spot / 2)
    assert receipt.final
    problem(await gateway.client.get("/v1/training-jobs/job_x/receipt"), 404, "not_found")

    shown = (await gateway.client.get("/metrics")).text
    for sample in ('rekindle_job_attempts_total{kind="train"}', 'rekindle_jobs_ended_total{kind="train",state='):
        assert sample in shown


async def reads(gateway: TrainingGateway, job_id: str, *, epoch: int) -> dict[str, Any] | None:
    job = await gateway.read(job_id)
    return job if job["metrics"] and job["metrics"]["epoch"] == epoch else None


async def test_serve_gets_the_trunk_of_a_published_version_once(gateway: TrainingGateway) -> None:
    for version in (1, 2):
        job_id = (await gateway.job())["id"]
        attempt = await gateway.attempt(job_id)
        attempt.run()
        attempt.publish(version)
        await gateway.job_in(job_id, "succeeded")

    async def deployed() -> bool:
        return "trunk-" + "a" * 16 in gateway.ray.applications

    await eventually(deployed)
    assert len(gateway.ray.deployments) == 1
    gateway.ray.restart()
    await eventually(deployed)


async def test_serve_starts_while_the_first_job_on_a_trunk_still_trains(gateway: TrainingGateway) -> None:
    job_id = (await gateway.job())["id"]
    attempt = await gateway.attempt(job_id)
    attempt.run()
    timing = StageTiming(
        stage=Stage.FEATURES, attempt=1, started_at=utc_now(), finished_at=None, trunk_id=TrunkId("b" * 64)
    )
    attempt.report(JobEventType.STAGE, Stage.FEATURES, timing, "features: on trunk bbbb")

    async def served() -> list[str]:
        return list(gateway.ray.applications)

    assert await eventually(served) == ["trunk-" + "b" * 16]
    await gateway.client.post(f"/v1/training-jobs/{job_id}/cancel")
    await gateway.job_in(job_id, "cancelled")

    async def gone() -> bool:
        return not gateway.ray.applications

    await eventually(gone)


async def test_how_the_backbone_was_chosen_is_on_the_job_and_on_its_version(gateway: TrainingGateway) -> None:
    tried = [{"backbone": "rekindle_tiny", "image_size": size} for size in (32, 64)]
    job = await gateway.job(backbone="auto", candidates=tried)
    assert (job["spec"]["backbone"], job["backbone_choice"]) == ("auto", None)
    attempt = await gateway.attempt(job["id"])
    attempt.run()
    timing = StageTiming(
        stage=Stage.CHOOSE, attempt=1, started_at=utc_now(), finished_at=utc_now(), backbone_choice=CHOICE
    )
    attempt.report(JobEventType.STAGE, Stage.CHOOSE, timing, "choose: done")
    shown = CHOICE.model_dump(mode="json")
    assert (await gateway.job_in(job["id"], "preparing"))["backbone_choice"] == shown
    async with gateway.database.transaction() as session:
        manifest = make_manifest(1).model_copy(update={"backbone_choice": CHOICE})
        await model_queries.insert_version(session, manifest)
    versions = (await gateway.client.get("/v1/models/flowers/versions")).json()["items"]
    assert [each["backbone_choice"] for each in versions] == [shown]


# --- failures -------------------------------------------------------------------------------------------------------


async def test_bad_data_fails_the_job_at_once_with_its_reason(each_gateway: TrainingGateway) -> None:
    job_id = (await each_gateway.job())["id"]
    attempt = await each_gateway.attempt(job_id)
    attempt.run()
    attempt.fail(FailureClass.USER, "class_too_small", "class 'rose' has no image that can be read")
    failed = await each_gateway.job_in(job_id, "failed")
    assert failed["failure"]["code"] == "class_too_small"
    assert failed["reason"] == "class 'rose' has no image that can be read"
    assert len(each_gateway.ray.submissions) == 1
    outcome = JobOutcome.model_validate_json(each_gateway.store.get(names.job_outcome(JobId(job_id))))
    assert outcome.state is JobState.FAILED


async def test_infrastructure_failures_do_not_use_up_attempts(gateway: TrainingGateway) -> None:
    job_id = (await gateway.job(max_attempts=1))["id"]
    for number in range(1, 5):
        attempt = await gateway.attempt(job_id, number)
        attempt.run()
        attempt.fail(FailureClass.INFRASTRUCTURE, "object_store_unavailable")
    last = await gateway.attempt(job_id, 5)
    last.run()
    last.publish()
    assert (await gateway.job_in(job_id, "succeeded", "failed"))["state"] == "succeeded"


async def test_unknown_failures_use_up_attempts(gateway: TrainingGateway) -> None:
    job_id = (await gateway.job(max_attempts=2))["id"]
    for number in (1, 2):
        attempt = await gateway.attempt(job_id, number)
        attempt.run()
        attempt.fail(FailureClass.UNKNOWN, "internal_error", "ZeroDivisionError")
    failed = await gateway.job_in(job_id, "failed")
    assert failed["failure"]["message"] == "ZeroDivisionError"
    assert len(gateway.ray.submissions) == 2


async def test_a_killed_driver_is_followed_by_an_attempt_that_outranks_it(gateway: TrainingGateway) -> None:
    job_id = (await gateway.job())["id"]
    first = await gateway.attempt(job_id)
    first.run()
    await gateway.job_in(job_id, "preparing")
    first.die()
    second = await gateway.attempt(job_id, 2)
    assert Fence.model_validate_json(gateway.store.get(names.job_fence(JobId(job_id)))).attempt == 2
    second.run()
    second.publish()
    done = await gateway.job_in(job_id, "succeeded")
    assert done["attempt"] == 2
    reasons = [event["message"] for event in await gateway.events(job_id) if event["type"] == "state"]
    assert any("died without a word" in reason and "Attempt 2 follows" in reason for reason in reasons)


async def test_a_killed_driver_that_left_its_result_has_succeeded(gateway: TrainingGateway) -> None:
    job_id = (await gateway.job())["id"]
    attempt = await gateway.attempt(job_id)
    attempt.publish()
    attempt.die()
    assert (await gateway.job_in(job_id, "succeeded", "failed"))["attempt"] == 1


async def test_progress_of_every_attempt_is_in_one_history_without_gaps(gateway: TrainingGateway) -> None:
    job_id = (await gateway.job())["id"]
    for number in (1, 2):
        attempt = await gateway.attempt(job_id, number)
        attempt.run()
        for each in range(1, 4):
            attempt.report(JobEventType.EPOCH, Stage.FIT, epoch(each), f"epoch {each} of attempt {number}")
        if number == 1:
            attempt.die()
        else:
            attempt.publish()
    await gateway.job_in(job_id, "succeeded")
    events = await gateway.events(job_id)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    told = [event["message"] for event in events if event["type"] == "epoch"]
    assert told == [f"epoch {each} of attempt {number}" for number in (1, 2) for each in (1, 2, 3)]


# --- trouble with the cluster ---------------------------------------------------------------------------------------


async def test_a_cluster_that_cannot_be_reached_starts_no_twin(gateway: TrainingGateway) -> None:
    job_id = (await gateway.job())["id"]
    attempt = await gateway.attempt(job_id)
    attempt.run()
    await gateway.job_in(job_id, "preparing")
    gateway.ray.reachable = False

    async def noticed() -> bool:
        return "Cannot reach the Ray cluster" in (await gateway.read(job_id))["reason"]

    await eventually(noticed)
    attempt.report(JobEventType.EPOCH, Stage.FIT, epoch(1))
    await gateway.job_in(job_id, "training")
    gateway.ray.reachable = True
    attempt.publish()
    await gateway.job_in(job_id, "succeeded")
    assert len(gateway.ray.submissions) == 1


WAIT = CapacityWait(
    asked="0.9 CPU on a spot node", since=utc_now(), message="no living node takes work", on_demand_at=None
)


async def test_a_job_that_waits_for_a_machine_says_so_until_it_goes_on(each_gateway: TrainingGateway) -> None:
    job_id = (await each_gateway.job(resources={"market": "spot", "on_demand_after_s": 600}))["id"]
    attempt = await each_gateway.attempt(job_id)
    attempt.run()
    assert (await each_gateway.job_in(job_id, "preparing"))["waiting"] is None
    attempt.report(JobEventType.CAPACITY, Stage.PREFLIGHT, WAIT, WAIT.sentence)
    shown = await each_gateway.job_in(job_id, "waiting_for_capacity")
    assert shown["waiting"] == WAIT.model_dump(mode="json")
    assert shown["reason"] == WAIT.sentence
    await asyncio.sleep(10 * each_gateway.settings.reconcile_interval_s)  # looks at an attempt that Ray calls running
    assert await each_gateway.read(job_id) == shown
    attempt.report(
        JobEventType.CAPACITY, Stage.PREFLIGHT, WAIT.model_copy(update={"over": True}), "A machine is there."
    )
    goes_on = await each_gateway.job_in(job_id, "preparing")
    assert goes_on["waiting"] is None
    assert "Waits" not in goes_on["reason"]
    attempt.publish()
    await each_gateway.job_in(job_id, "succeeded")
    states = [event["state"] for event in await each_gateway.events(job_id) if event["type"] == "state"]
    assert states[-4:] == ["preparing", "waiting_for_capacity", "preparing", "succeeded"]


@pytest.mark.parametrize("end", ["die", "cancel"])
async def test_a_wait_ends_with_its_attempt(gateway: TrainingGateway, end: str) -> None:
    job_id = (await gateway.job())["id"]
    attempt = await gateway.attempt(job_id)
    attempt.run()
    attempt.report(JobEventType.CAPACITY, Stage.FIT, WAIT, WAIT.sentence)
    await gateway.job_in(job_id, "waiting_for_capacity")
    if end == "die":
        attempt.die()
        (await gateway.attempt(job_id, 2)).run()
        ended = await gateway.job_in(job_id, "preparing")
    else:
        cancelled = await gateway.client.post(f"/v1/training-jobs/{job_id}/cancel")
        assert cancelled.json()["waiting"] is None
        ended = await gateway.job_in(job_id, "cancelled")
    assert ended["waiting"] is None


async def test_a_job_that_is_accepted_while_the_cluster_is_away_runs_when_it_is_back(gateway: TrainingGateway) -> None:
    gateway.ray.reachable = False
    job_id = (await gateway.job())["id"]

    async def noticed() -> bool:
        return "Cannot reach" in (await gateway.read(job_id))["reason"]

    await eventually(noticed)
    gateway.ray.reachable = True
    await gateway.attempt(job_id)
    assert len(gateway.ray.submissions) == 1


async def test_a_submission_whose_answer_was_lost_is_not_done_twice(gateway: TrainingGateway) -> None:
    gateway.ray.loses_submissions = True
    job_id = (await gateway.job())["id"]
    attempt = await gateway.attempt(job_id)
    attempt.run()
    await gateway.job_in(job_id, "preparing")
    assert [each.submission_id for each in gateway.ray.submissions] == [f"{job_id}-a1"]


@pytest.mark.timeout(60)
async def test_a_driver_that_died_with_the_head_is_found_though_ray_says_that_it_runs(gateway: TrainingGateway) -> None:
    job_id = (await gateway.job(max_attempts=1))["id"]
    attempt = await gateway.attempt(job_id)
    attempt.run()
    await gateway.job_in(job_id, "preparing")
    gateway.ray.fail_unseen(f"{job_id}-a1")
    again = await gateway.attempt(job_id, 2, patience_s=SILENCE.total_seconds() + 20)
    again.run()
    again.publish()
    await gateway.job_in(job_id, "succeeded")


async def test_a_restarted_cluster_gets_the_job_again_as_a_new_attempt(gateway: TrainingGateway) -> None:
    job_id = (await gateway.job(max_attempts=1))["id"]
    attempt = await gateway.attempt(job_id)
    attempt.run()
    await gateway.job_in(job_id, "preparing")
    gateway.ray.restart()
    again = await gateway.attempt(job_id, 2)
    again.run()
    again.publish()
    await gateway.job_in(job_id, "succeeded")


async def test_only_so_many_jobs_run_at_a_time_and_the_oldest_come_first(tmp_path: Path, empty_sqlite_url: str) -> None:
    async with training_gateway(tmp_path, empty_sqlite_url, max_running_jobs=2) as gateway:
        jobs = [(await gateway.job())["id"] for _ in range(4)]
        attempts = [await gateway.attempt(job_id) for job_id in jobs[:2]]

        async def waits() -> bool:
            return "other jobs" in (await gateway.read(jobs[2]))["reason"]

        await eventually(waits)
        assert len(gateway.ray.submissions) == 2
        attempts[0].publish()
        await gateway.attempt(jobs[2])
        assert f"{jobs[3]}-a1" not in gateway.ray.jobs


# --- cancelling -----------------------------------------------------------------------------------------------------


async def test_a_running_job_is_stopped_and_then_cancelled(each_gateway: TrainingGateway) -> None:
    gateway = each_gateway
    job_id = (await gateway.job())["id"]
    attempt = await gateway.attempt(job_id)
    attempt.run()
    await gateway.job_in(job_id, "preparing")
    response = await gateway.client.post(f"/v1/training-jobs/{job_id}/cancel")
    assert (response.status_code, response.json()["state"]) == (202, "cancelling")
    assert (await gateway.client.post(f"/v1/training-jobs/{job_id}/cancel")).status_code == 202
    await gateway.job_in(job_id, "cancelled")
    assert gateway.ray.jobs[f"{job_id}-a1"].status is RayStatus.STOPPED
    # Whatever is left of the attempt finds itself given up.
    assert Fence.model_validate_json(gateway.store.get(names.job_fence(JobId(job_id)))).attempt == 2
    again = await gateway.client.post(f"/v1/training-jobs/{job_id}/cancel")
    assert (again.status_code, again.json()["state"]) == (202, "cancelled")
    requests = [event for event in await gateway.events(job_id) if event["state"] == "cancelling"]
    assert len([event for event in requests if "requested" in event["message"]]) == 1


async def test_a_job_is_cancelled_only_once_the_cluster_says_that_it_stopped(gateway: TrainingGateway) -> None:
    job_id = (await gateway.job())["id"]
    attempt = await gateway.attempt(job_id)
    attempt.run()
    await gateway.job_in(job_id, "preparing")
    gateway.ray.reachable = False
    await gateway.client.post(f"/v1/training-jobs/{job_id}/cancel")

    async def noticed() -> bool:
        return "Cannot reach" in (await gateway.read(job_id))["reason"]

    await eventually(noticed)
    assert (await gateway.read(job_id))["state"] == "cancelling"
    gateway.ray.reachable = True
    await gateway.job_in(job_id, "cancelled")


async def test_a_job_that_has_ended_cannot_be_cancelled(gateway: TrainingGateway) -> None:
    job_id = (await gateway.job())["id"]
    (await gateway.attempt(job_id)).publish()
    await gateway.job_in(job_id, "succeeded")
    problem(await gateway.client.post(f"/v1/training-jobs/{job_id}/cancel"), 409, "conflict")


# --- looking --------------------------------------------------------------------------------------------------------


async def test_jobs_are_listed_newest_first_page_by_page(each_gateway: TrainingGateway) -> None:
    made = [(await each_gateway.job())["id"] for _ in range(5)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await each_gateway.client.get("/v1/training-jobs", params=query)).json()
        seen += [job["id"] for job in page["items"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == made[::-1]


async def test_jobs_are_filtered_by_state_and_model(gateway: TrainingGateway) -> None:
    done, other = (await gateway.job())["id"], (await gateway.job(model_name="other"))["id"]
    (await gateway.attempt(done)).publish()
    await gateway.job_in(done, "succeeded")

    async def listed(**query: Any) -> list[str]:
        page = (await gateway.client.get("/v1/training-jobs", params=query)).json()
        return [job["id"] for job in page["items"]]

    assert await listed(state="succeeded") == [done]
    assert await listed(state=["succeeded", "queued", "preparing"]) == [other, done]
    assert await listed(model_name="other") == [other]
    problem(await gateway.client.get("/v1/training-jobs", params={"state": "gone"}), 422, "validation_failed")
    problem(await gateway.client.get("/v1/training-jobs", params={"cursor": "gone"}), 400, "invalid_request")


async def test_the_log_of_an_attempt_is_the_clusters(gateway: TrainingGateway) -> None:
    job_id = (await gateway.job())["id"]
    attempt = await gateway.attempt(job_id)
    gateway.ray.log_texts[attempt.submission_id] = "epoch 1\n"
    log = f"/v1/training-jobs/{job_id}/logs"
    response = await gateway.client.get(log)
    assert (response.text, response.headers["content-type"]) == ("epoch 1\n", "text/plain; charset=utf-8")
    problem(await gateway.client.get(log, params={"attempt": 2}), 404, "not_found")
    gateway.ray.reachable = False
    unavailable = await gateway.client.get(log)
    problem(unavailable, 503, "cluster_unavailable")
    assert unavailable.headers["retry-after"] == "2"


@pytest.mark.parametrize("path", ["", "/metrics", "/logs", "/events"])
@pytest.mark.parametrize("job_id", ["job_" + "0" * 24, "nonsense", "%00", "%F0%9F%8C%B9"])
async def test_an_unknown_job_is_not_found(gateway: TrainingGateway, job_id: str, path: str) -> None:
    problem(await gateway.client.get(f"/v1/training-jobs/{job_id}{path}"), 404, "not_found")


# --- the base model -------------------------------------------------------------------------------------------------


async def test_the_base_model_is_published_by_a_job_that_users_do_not_see(
    tmp_path: Path, empty_sqlite_url: str
) -> None:
    base = {"base_weights": "imagenet", "base_backbone": "mobilenet_v2"}
    ray = FakeRay()
    async with training_gateway(tmp_path, empty_sqlite_url, ray, **base) as gateway:

        async def submitted() -> bool:
            return len(ray.submissions) == 1

        await eventually(submitted)
        job_id = ray.submissions[0].metadata["job_id"]
        record = JobRecord.model_validate_json(gateway.store.get(names.job_spec(JobId(job_id))))
        assert record.kind is JobKind.IMPORT_BASE
        assert record.base is not None
        assert record.base.image_size == 224
        (await gateway.attempt(job_id)).publish(model_name="base")

        async def published() -> bool:
            return (await gateway.client.get("/v1/models/base")).status_code == 200

        await eventually(published)
        assert (await gateway.client.get("/v1/training-jobs")).json()["items"] == []
        problem(await gateway.client.get(f"/v1/training-jobs/{job_id}"), 404, "not_found")
    async with training_gateway(tmp_path, empty_sqlite_url, ray, **base) as gateway:
        await gateway.job()
        await eventually(lambda: two_submissions(ray))
        assert [each.metadata["model_name"] for each in ray.submissions] == ["base", "flowers"]


async def two_submissions(ray: FakeRay) -> bool:
    return len(ray.submissions) == 2


# --- several gateways, and gateways that die ------------------------------------------------------------------------


async def test_two_gateways_submit_every_job_once(tmp_path: Path, database_url: str) -> None:
    ray = FakeRay()
    bucket = (tmp_path / "shared").as_uri()
    async with (
        training_gateway(tmp_path / "1", database_url, ray, keep_bucket=bucket) as one,
        training_gateway(tmp_path / "2", database_url, ray, keep_bucket=bucket) as two,
    ):
        jobs = [(await each.job())["id"] for each in (one, two, one, two)]
        for job_id in jobs:
            attempt = await one.attempt(job_id)
            attempt.run()
            attempt.publish(jobs.index(job_id) + 1)
        for job_id in jobs:
            await two.job_in(job_id, "succeeded")
        assert sorted(each.submission_id for each in ray.submissions) == sorted(f"{job_id}-a1" for job_id in jobs)
        for job_id in jobs:
            events = await one.events(job_id)
            assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
            assert [event["state"] for event in events].count("succeeded") == 1


async def test_the_lease_of_a_dead_leader_passes_to_another(tmp_path: Path, database_url: str) -> None:
    database = Database(database_url)
    await database.migrate()
    # A leader that was killed: nobody renews its lease, and nobody gives it back.
    assert await LeaseStore(database).acquire(LEASE_NAME, "killed", 1.5)
    async with training_gateway(tmp_path, database_url, lease_s=1) as gateway:
        job_id = (await gateway.job())["id"]
        assert gateway.ray.submissions == []
        await gateway.attempt(job_id)
    await database.close()


async def test_a_gateway_that_stops_leaves_the_lease_to_the_next_at_once(tmp_path: Path, database_url: str) -> None:
    ray = FakeRay()
    bucket = (tmp_path / "shared").as_uri()
    async with training_gateway(tmp_path / "1", database_url, ray, keep_bucket=bucket, lease_s=300) as one:
        job_id = (await one.job())["id"]
        attempt = await one.attempt(job_id)
        attempt.run()
        await one.job_in(job_id, "preparing")
    # With a lease of five minutes that was not given back, the next one would have nothing to say for long.
    async with training_gateway(tmp_path / "2", database_url, ray, keep_bucket=bucket, lease_s=300) as two:
        attempt.publish()
        await two.job_in(job_id, "succeeded")
    assert len(ray.submissions) == 1


async def test_a_gateway_that_stops_while_it_acquires_the_lease_leaves_it_to_the_next(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with training_gateway(tmp_path, database_url, lease_s=300) as gateway:
        pass  # it gives the lease back, and its parts can still be used
    database = Database(database_url)
    acquired = asyncio.Event()
    acquire = LeaseStore.acquire

    async def acquire_and_hang(*arguments: Any) -> None:
        assert await acquire(*arguments) is not None
        acquired.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(LeaseStore, "acquire", acquire_and_hang)
    stopped = asyncio.create_task(Reconciler(gateway.app.state.training).run())
    await acquired.wait()
    stopped.cancel()
    await asyncio.wait([stopped])
    monkeypatch.undo()
    assert await LeaseStore(database).acquire(LEASE_NAME, "next", 300) is not None
    await database.close()


async def test_a_leader_that_slept_through_its_lease_changes_nothing(tmp_path: Path, database_url: str) -> None:
    database = Database(database_url)
    await database.migrate()
    slept = await LeaseStore(database).acquire(LEASE_NAME, "slept", 300)
    assert slept is not None
    await LeaseStore(database).release(slept)
    assert await LeaseStore(database).acquire(LEASE_NAME, "other", 300)
    async with training_gateway(tmp_path, database_url) as gateway:
        job = await gateway.job()
        training = gateway.app.state.training
        with pytest.raises(Fenced):
            await Reconciler(training).look(Actor(training, LeasedDatabase(database, slept), SpareKeeper(training)))
        assert gateway.ray.submissions == []
        assert await gateway.read(job["id"]) == job
    await database.close()
