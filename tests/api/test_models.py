"""Models over HTTP: versions, and aliases that promote and roll back without losing anybody's change."""

import asyncio
from typing import Any

import pytest

from services.contracts import names
from services.contracts.aliases import AliasRecord
from services.contracts.models import VersionDeletion
from services.training.models import queries
from tests.servers.training import TrainingGateway, eventually, make_manifest, problem


async def publish(gateway: TrainingGateway, version: int, model_name: str = "flowers", **options: Any) -> None:
    async with gateway.database.transaction() as session:
        await queries.insert_version(session, make_manifest(version, model_name, **options))


async def promote(gateway: TrainingGateway, version: int, expected: int | None = None, alias: str = "production"):
    body = {"version": version} | ({} if expected is None else {"expected_version": expected})
    return await gateway.client.put(f"/v1/models/flowers/aliases/{alias}", json=body)


def record(gateway: TrainingGateway, alias: str = "production") -> AliasRecord:
    return AliasRecord.model_validate_json(gateway.store.get(names.model_alias("flowers", alias)))


async def test_a_model_shows_its_latest_version_and_its_aliases(each_gateway: TrainingGateway) -> None:
    await publish(each_gateway, 1)
    await publish(each_gateway, 2)
    await promote(each_gateway, 1)
    model = (await each_gateway.client.get("/v1/models/flowers")).json()
    assert (model["latest_version"], model["labels"], model["accuracy"]) == (2, ["daisy", "rose"], 0.75)
    assert [(each["alias"], each["version"]) for each in model["aliases"]] == [("production", 1)]
    assert model["created_at"] < model["updated_at"]
    assert (await each_gateway.client.get("/v1/models")).json()["items"] == [model]


async def test_models_are_listed_the_one_published_to_last_first(each_gateway: TrainingGateway) -> None:
    for version, name in ((1, "a"), (1, "b"), (1, "c"), (2, "a")):
        await publish(each_gateway, version, name)
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 1}
    while len(seen) < 10:
        page = (await each_gateway.client.get("/v1/models", params=query)).json()
        seen += [model["name"] for model in page["items"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == ["a", "c", "b"]


async def test_versions_are_listed_newest_first(each_gateway: TrainingGateway) -> None:
    for version in range(1, 12):
        await publish(each_gateway, version)
    first = (await each_gateway.client.get("/v1/models/flowers/versions", params={"limit": 6})).json()
    query = {"limit": 6, "cursor": first["next_cursor"]}
    rest = (await each_gateway.client.get("/v1/models/flowers/versions", params=query)).json()
    assert [each["version"] for each in first["items"] + rest["items"]] == list(range(11, 0, -1))
    assert rest["next_cursor"] is None


async def test_a_version_shows_what_it_is_worth(gateway: TrainingGateway) -> None:
    await publish(gateway, 1)
    version = (await gateway.client.get("/v1/models/flowers/versions/1")).json()
    assert version["evaluation"]["confusion_matrix"] == [[1, 1], [0, 2]]
    assert version["weights_sha256"] == f"{1:064x}"
    assert version["backbone"] == "rekindle_tiny"


@pytest.mark.parametrize(
    "path", ["x", "x/versions", "x/versions/1", "flowers/versions/2", "flowers/versions/0", "%00", "é" * 99]
)
async def test_what_is_not_there_is_not_found(gateway: TrainingGateway, path: str) -> None:
    await publish(gateway, 1)
    problem(await gateway.client.get(f"/v1/models/{path}"), 404, "not_found")


async def test_a_version_number_beyond_all_bounds_is_not_found(gateway: TrainingGateway) -> None:
    await publish(gateway, 1)
    problem(await gateway.client.get(f"/v1/models/flowers/versions/{2**80}"), 404, "not_found")


# --- aliases --------------------------------------------------------------------------------------------------------


async def test_promoting_and_rolling_back(each_gateway: TrainingGateway) -> None:
    for version in (1, 2):
        await publish(each_gateway, version)
    assert (await promote(each_gateway, 1, expected=0)).json()["version"] == 1
    assert (await promote(each_gateway, 2, expected=1)).json()["version"] == 2
    assert record(each_gateway).version == 2
    assert (await promote(each_gateway, 1)).json()["version"] == 1
    assert record(each_gateway).version == 1


async def test_a_change_that_others_have_overtaken_is_a_conflict_and_says_where_it_is(
    each_gateway: TrainingGateway,
) -> None:
    for version in (1, 2, 3):
        await publish(each_gateway, version)
    await promote(each_gateway, 2)
    body = problem(await promote(each_gateway, 3, expected=1), 409, "conflict")
    assert body["details"] == {"actual_version": 2}
    missing = problem(await promote(each_gateway, 3, expected=1, alias="canary"), 409, "conflict")
    assert missing["details"] == {"actual_version": 0}
    assert record(each_gateway).version == 2


async def test_a_change_may_be_repeated_when_its_answer_got_lost(gateway: TrainingGateway) -> None:
    for version in (1, 2):
        await publish(gateway, version)
    await promote(gateway, 1)
    first = await promote(gateway, 2, expected=1)
    assert (await promote(gateway, 2, expected=1)).json() == first.json()


async def test_of_many_changes_at_a_time_one_wins_and_the_bucket_has_it(each_gateway: TrainingGateway) -> None:
    for version in range(1, 9):
        await publish(each_gateway, version)
    responses = await asyncio.gather(*(promote(each_gateway, version, expected=0) for version in range(1, 9)))
    (winner,) = [response.json() for response in responses if response.status_code == 200]
    assert {response.status_code for response in responses} == {200, 409}
    model = (await each_gateway.client.get("/v1/models/flowers")).json()
    assert model["aliases"] == [winner]
    assert record(each_gateway).version == winner["version"]


async def test_the_bucket_ends_with_what_the_database_has_after_unchecked_changes(gateway: TrainingGateway) -> None:
    for version in range(1, 9):
        await publish(gateway, version)
    await asyncio.gather(*(promote(gateway, version) for version in range(1, 9)))
    (alias,) = (await gateway.client.get("/v1/models/flowers")).json()["aliases"]
    assert record(gateway).version == alias["version"]


async def test_an_alias_needs_a_version_that_is_there(gateway: TrainingGateway) -> None:
    problem(await promote(gateway, 1), 404, "not_found")
    await publish(gateway, 1)
    problem(await promote(gateway, 2), 404, "not_found")
    problem(await promote(gateway, 0), 422, "validation_failed")
    problem(await promote(gateway, 1, alias="latest"), 400, "invalid_request")
    problem(await promote(gateway, 1, alias="No"), 422, "validation_failed")


async def test_a_deleted_alias_stays_deleted_for_the_bucket_too(each_gateway: TrainingGateway) -> None:
    await publish(each_gateway, 1)
    await promote(each_gateway, 1)
    alias = "/v1/models/flowers/aliases/production"
    assert (await each_gateway.client.delete(alias)).status_code == 204
    assert record(each_gateway).version is None
    problem(await each_gateway.client.delete(alias), 404, "not_found")


# --- a second version beside the first ---

SPLIT = {"version": 1, "split": {"version": 2, "weight": 0.25}}
SHADOW = {"version": 1, "shadow": {"version": 2}}
PLAIN = {"version": 1}


async def put(gateway: TrainingGateway, body: dict[str, Any]):
    return await gateway.client.put("/v1/models/flowers/aliases/production", json=body)


async def aliases(gateway: TrainingGateway) -> list[dict[str, Any]]:
    return (await gateway.client.get("/v1/models/flowers")).json()["aliases"]


async def with_versions(gateway: TrainingGateway, count: int) -> TrainingGateway:
    for version in range(1, count + 1):
        await publish(gateway, version)
    return gateway


def parts(alias: dict[str, Any] | AliasRecord) -> dict[str, Any]:
    """What it refers to, without the roles that nobody has."""
    shown = alias.model_dump(mode="json") if isinstance(alias, AliasRecord) else alias
    return {name: shown[name] for name in ("version", "split", "shadow") if shown[name] is not None}


@pytest.mark.parametrize("target", [SPLIT, SHADOW])
async def test_an_alias_shows_and_keeps_its_second_version(each_gateway: TrainingGateway, target: dict) -> None:
    gateway = await with_versions(each_gateway, 2)
    answer = (await put(gateway, target)).json()
    assert parts(answer) == target
    assert await aliases(gateway) == [answer]
    assert parts(record(gateway)) == target


@pytest.mark.parametrize("before", [SPLIT, SHADOW])
@pytest.mark.parametrize("after", [SPLIT, SHADOW, PLAIN])
async def test_a_change_replaces_the_whole(gateway: TrainingGateway, before: dict, after: dict) -> None:
    await with_versions(gateway, 2)
    await put(gateway, before)
    assert parts((await put(gateway, after | {"expected": before})).json()) == after
    assert parts(record(gateway)) == after


@pytest.mark.parametrize("now", [SPLIT, SHADOW, PLAIN])
@pytest.mark.parametrize(
    "expected", [SPLIT, SHADOW, PLAIN, {"version": 1, "split": {"version": 2, "weight": 0.26}}, {"version": 2}]
)
async def test_the_whole_is_compared(gateway: TrainingGateway, now: dict, expected: dict) -> None:
    await with_versions(gateway, 3)
    await put(gateway, now)
    answer = await put(gateway, {"version": 3, "expected": expected})
    if expected == now:
        assert parts(answer.json()) == {"version": 3}
        return
    details = problem(answer, 409, "conflict")["details"]
    assert (details["actual_version"], parts(details["actual"])) == (1, now)
    assert parts(record(gateway)) == now


async def test_an_expected_version_is_that_of_the_alias_itself(gateway: TrainingGateway) -> None:
    await with_versions(gateway, 2)
    await put(gateway, SPLIT)
    problem(await promote(gateway, 2, expected=2), 409, "conflict")
    assert parts((await promote(gateway, 2, expected=1)).json()) == {"version": 2}


async def test_nothing_expected_where_there_is_none_is_a_conflict_too(gateway: TrainingGateway) -> None:
    await with_versions(gateway, 2)
    body = problem(await put(gateway, SPLIT | {"expected": PLAIN}), 409, "conflict")
    assert body["details"] == {"actual_version": 0}
    assert parts((await put(gateway, SPLIT | {"expected_version": 0})).json()) == SPLIT


async def test_repeating_a_richer_change_is_no_conflict(gateway: TrainingGateway) -> None:
    await with_versions(gateway, 2)
    await put(gateway, PLAIN)
    first = await put(gateway, SPLIT | {"expected": PLAIN})
    again = await put(gateway, SPLIT | {"expected": PLAIN})
    assert again.json() == first.json()
    heavier = {"version": 1, "split": {"version": 2, "weight": 0.5}}
    problem(await put(gateway, heavier | {"expected": PLAIN}), 409, "conflict")


async def test_of_many_splits_at_a_time_one_wins_and_the_bucket_has_it(each_gateway: TrainingGateway) -> None:
    gateway = await with_versions(each_gateway, 4)
    await put(gateway, PLAIN)
    bodies = [
        {"version": version, "split": {"version": other, "weight": 0.5}, "expected": PLAIN}
        for version in range(1, 5)
        for other in range(1, 5)
        if version != other
    ]
    responses = await asyncio.gather(*(put(gateway, body) for body in bodies))
    assert sorted(response.status_code for response in responses) == [200] + [409] * (len(bodies) - 1)
    (alias,) = await aliases(gateway)
    assert parts(record(gateway)) == parts(alias)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (SPLIT | SHADOW, "not both"),
        ({"version": 2, "split": {"version": 2, "weight": 0.5}}, "named twice"),
        ({"version": 2, "shadow": {"version": 2}}, "named twice"),
        ({"version": 1, "split": {"version": 2}}, "weight"),
        *(({"version": 1, "split": {"version": 2, "weight": weight}}, "weight") for weight in (0, 1, -1, 2)),
        ({"version": 1, "shadow": {"version": 0}}, "shadow"),
        ({"version": 1, "challenger": {"version": 2}}, "challenger"),
        ({"version": 2, "expected": PLAIN, "expected_version": 1}, "not both"),
    ],
)
async def test_a_target_that_makes_no_sense_is_refused(gateway: TrainingGateway, body: dict, named: str) -> None:
    await with_versions(gateway, 2)
    assert named in problem(await put(gateway, body), 422, "validation_failed")["detail"]
    assert await aliases(gateway) == []


@pytest.mark.parametrize("target", [SPLIT, SHADOW])
async def test_both_versions_must_be_there_and_cannot_be_deleted(each_gateway: TrainingGateway, target: dict) -> None:
    gateway = each_gateway
    await publish(gateway, 1)
    problem(await put(gateway, target), 404, "not_found")
    assert await aliases(gateway) == []
    await publish(gateway, 2)
    await put(gateway, target)
    for version in (1, 2):
        body = problem(await gateway.client.delete(f"/v1/models/flowers/versions/{version}"), 409, "conflict")
        assert body["details"] == {"aliases": ["production"]}
    await put(gateway, PLAIN)
    assert (await gateway.client.delete("/v1/models/flowers/versions/2")).status_code == 204


@pytest.mark.parametrize("role", ["split", "shadow"])
async def test_taking_a_role_and_being_deleted_at_the_same_time(each_gateway: TrainingGateway, role: str) -> None:
    gateway = await with_versions(each_gateway, 6)
    for version in range(2, 7):
        second = {"version": version} | ({"weight": 0.5} if role == "split" else {})
        pointed, deleted = await asyncio.gather(
            put(gateway, PLAIN | {role: second}),
            gateway.client.delete(f"/v1/models/flowers/versions/{version}"),
        )
        assert (pointed.status_code, deleted.status_code) in ((200, 409), (404, 204))
        await put(gateway, PLAIN)


# --- deleting -------------------------------------------------------------------------------------------------------


async def test_a_deleted_version_is_no_longer_shown_or_promoted(each_gateway: TrainingGateway) -> None:
    gateway = each_gateway
    for version in (1, 2):
        await publish(gateway, version)
    assert (await gateway.client.delete("/v1/models/flowers/versions/2")).status_code == 204
    problem(await gateway.client.get("/v1/models/flowers/versions/2"), 404, "not_found")
    problem(await promote(gateway, 2), 404, "not_found")
    assert (await gateway.client.get("/v1/models/flowers")).json()["latest_version"] == 1
    VersionDeletion.model_validate_json(gateway.store.get(names.model_deletion("flowers", 2)))
    # The answer may have got lost, so it may be repeated.
    assert (await gateway.client.delete("/v1/models/flowers/versions/2")).status_code == 204


async def test_a_version_with_an_alias_is_not_deleted(each_gateway: TrainingGateway) -> None:
    await publish(each_gateway, 1)
    await promote(each_gateway, 1)
    body = problem(await each_gateway.client.delete("/v1/models/flowers/versions/1"), 409, "conflict")
    assert body["details"] == {"aliases": ["production"]}


async def test_promoting_and_deleting_at_the_same_time_leaves_no_alias_to_nothing(
    each_gateway: TrainingGateway,
) -> None:
    for version in range(1, 6):
        await publish(each_gateway, version)
        promoted, deleted = await asyncio.gather(
            promote(each_gateway, version), each_gateway.client.delete(f"/v1/models/flowers/versions/{version}")
        )
        assert (promoted.status_code, deleted.status_code) in ((200, 409), (404, 204))
        await each_gateway.client.delete("/v1/models/flowers/aliases/production")


async def test_serve_lets_go_of_the_trunk_of_the_last_version(gateway: TrainingGateway) -> None:
    await publish(gateway, 1)
    gateway.app.state.training.published.send()

    async def deployed(count: int) -> bool:
        return len(gateway.ray.applications) == count and len(gateway.ray.deployments) > 0

    await eventually(lambda: deployed(1))
    await gateway.client.delete("/v1/models/flowers/versions/1")
    await eventually(lambda: deployed(0))
