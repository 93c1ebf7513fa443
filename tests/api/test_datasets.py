"""Datasets over HTTP: what can be trained on is registered, what cannot be is refused with a clear answer."""

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from services.contracts import names
from services.contracts.datasets import Dataset, DatasetManifest, PreflightReport
from services.contracts.ids import DatasetId
from services.runtime.objects import open_store
from tests.servers.training import TrainingGateway, problem, training_gateway


async def register(gateway: TrainingGateway, uri: str, name: str = "flowers", **headers: str):
    body = {"name": name, "source": {"type": "prefix", "uri": uri}}
    return await gateway.client.post("/v1/datasets", json=body, headers=headers)


async def upload(gateway: TrainingGateway) -> str:
    """The path of a new dataset that waits for its files."""
    body = {"name": "flowers", "source": {"type": "upload"}}
    response = await gateway.client.post("/v1/datasets", json=body)
    assert (response.status_code, response.json()["state"]) == (201, "awaiting_upload")
    return f"/v1/datasets/{response.json()['id']}"


def stored(gateway: TrainingGateway, dataset_path: str) -> dict[str, bytes]:
    """The uploaded files, by path."""
    prefix = names.dataset_files(DatasetId(dataset_path.rpartition("/")[2]))
    return {info.key.removeprefix(prefix): gateway.store.get(info.key) for info in gateway.store.list(prefix)}


def archive(*paths: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for path in paths:
            opened.writestr(path, path.encode())
    return buffer.getvalue()


# --- prefixes -------------------------------------------------------------------------------------------------------


async def test_a_folder_of_images_is_registered_and_recorded(each_gateway: TrainingGateway) -> None:
    uri = each_gateway.images(rose=3, daisy=2)
    response = await register(each_gateway, uri)
    assert response.status_code == 201
    made = response.json()
    assert made["state"] == "ready"
    assert made["layout"] == {"splits": ["train"], "classes": ["daisy", "rose"], "image_count": 5}
    assert (await each_gateway.client.get(f"/v1/datasets/{made['id']}")).json() == made
    record = each_gateway.store.get(names.dataset_record(DatasetId(made["id"])))
    assert Dataset.model_validate_json(record) == Dataset.model_validate(made)


async def test_a_prefix_in_s3_is_registered(tmp_path: Path, empty_sqlite_url: str, s3_bucket: str) -> None:
    store = open_store(f"{s3_bucket}/flowers")
    for path in ("été/1.jpg", "été/2.jpg", "花/1.jpg", "花/2.jpg"):
        store.put(path, b"x")
    async with training_gateway(tmp_path, empty_sqlite_url) as gateway:
        response = await register(gateway, f"{s3_bucket}/flowers/")
        assert response.json()["layout"]["classes"] == ["été", "花"]
        problem(await register(gateway, f"{s3_bucket}/nothing/"), 422, "dataset_empty")
        problem(await register(gateway, "s3://no-such-bucket-anywhere/x/"), 422, "source_unreadable")


async def test_an_empty_folder(gateway: TrainingGateway) -> None:
    body = problem(await register(gateway, gateway.images("empty")), 422, "dataset_empty")
    assert "one folder per class" in body["detail"]


async def test_one_class_only(gateway: TrainingGateway) -> None:
    body = problem(await register(gateway, gateway.images("one", daisy=3)), 422, "dataset_too_few_classes")
    assert "'daisy'" in body["detail"]


async def test_a_class_with_one_image(gateway: TrainingGateway) -> None:
    body = problem(await register(gateway, gateway.images("small", daisy=3, rose=1)), 422, "class_too_small")
    assert body["details"] == {"classes": ["rose"]}


async def test_a_folder_that_is_not_there(gateway: TrainingGateway) -> None:
    body = problem(await register(gateway, "file:///no/such/folder"), 422, "source_unreadable")
    assert "/no/such/folder" in body["detail"]


@pytest.mark.parametrize(
    "uri", ["s3://secret/x/", "http://x/y", "/etc", "s3://mine/../secret/", "file://elsewhere/x", "s3://mineral/x"]
)
async def test_a_place_that_the_operator_does_not_allow(tmp_path: Path, empty_sqlite_url: str, uri: str) -> None:
    async with training_gateway(tmp_path, empty_sqlite_url, allowed_sources=("s3://mine",)) as gateway:
        problem(await register(gateway, uri), 403, "source_not_allowed")


async def test_local_folders_can_be_closed(tmp_path: Path, empty_sqlite_url: str) -> None:
    async with training_gateway(tmp_path, empty_sqlite_url, allow_local_sources=False) as gateway:
        problem(await register(gateway, gateway.images(daisy=3, rose=3)), 403, "source_not_allowed")


async def test_what_was_refused_is_not_there(gateway: TrainingGateway) -> None:
    await register(gateway, gateway.images("one", daisy=3))
    assert (await gateway.client.get("/v1/datasets")).json() == {"items": [], "next_cursor": None}
    assert list(gateway.store.list("datasets/")) == []


@pytest.mark.parametrize("name", ["", "Flowers", "a b", "x" * 65, "-x", "ü", "a/b", "..", "\0"])
async def test_a_name_that_cannot_be(gateway: TrainingGateway, name: str) -> None:
    problem(await register(gateway, gateway.images(daisy=3, rose=3), name), 422, "validation_failed")


async def test_the_same_key_registers_once_even_when_sent_at_the_same_time(each_gateway: TrainingGateway) -> None:
    uri = each_gateway.images(daisy=3, rose=3)
    key = {"Idempotency-Key": "k"}
    responses = await asyncio.gather(*(register(each_gateway, uri, **key) for _ in range(8)))
    assert len({response.json()["id"] for response in responses}) == 1
    assert len((await each_gateway.client.get("/v1/datasets")).json()["items"]) == 1
    problem(await register(each_gateway, uri, "other", **key), 422, "idempotency_key_reused")


async def test_datasets_are_listed_newest_first_and_by_name(each_gateway: TrainingGateway) -> None:
    uri = each_gateway.images(daisy=3, rose=3)
    made = [(await register(each_gateway, uri, name)).json()["id"] for name in ("a", "b", "a")]
    first = (await each_gateway.client.get("/v1/datasets", params={"limit": 2})).json()
    rest = (await each_gateway.client.get("/v1/datasets", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert [each["id"] for each in first["items"] + rest["items"]] == made[::-1]
    assert rest["next_cursor"] is None
    named = (await each_gateway.client.get("/v1/datasets", params={"name": "a"})).json()
    assert [each["id"] for each in named["items"]] == [made[2], made[0]]


@pytest.mark.parametrize("dataset_id", ["ds_" + "0" * 24, "nonsense", "%00"])
async def test_an_unknown_dataset_is_not_found(gateway: TrainingGateway, dataset_id: str) -> None:
    problem(await gateway.client.get(f"/v1/datasets/{dataset_id}"), 404, "not_found")
    problem(await gateway.client.put(f"/v1/datasets/{dataset_id}/files/a/1.jpg", content=b"x"), 404, "not_found")
    problem(await gateway.client.post(f"/v1/datasets/{dataset_id}/complete"), 404, "not_found")


# --- uploads --------------------------------------------------------------------------------------------------------


async def test_files_that_were_uploaded_can_be_trained_on(each_gateway: TrainingGateway) -> None:
    gateway = each_gateway
    dataset = await upload(gateway)
    files = {f"{label}/{number} ü.jpg": f"{label}{number}".encode() for label in ("été", "rose") for number in (1, 2)}
    for path, data in files.items():
        response = await gateway.client.put(f"{dataset}/files/{quote(path)}", content=data)
        assert (response.status_code, response.json()) == (201, {"path": path, "size_bytes": len(data)})
    assert stored(gateway, dataset) == files
    done = (await gateway.client.post(f"{dataset}/complete")).json()
    assert (done["state"], done["layout"]["classes"]) == ("ready", ["rose", "été"])
    assert (await gateway.client.post(f"{dataset}/complete")).json() == done
    assert (await gateway.client.get(dataset)).json() == done
    response = await gateway.client.post("/v1/training-jobs", json={"dataset_id": done["id"]})
    assert response.status_code == 201
    spec = json.loads(gateway.store.get(names.job_spec(response.json()["id"])))
    assert spec["source_uri"] == f"{gateway.store.uri}/datasets/{done['id']}/files"


async def test_sending_a_file_again_replaces_it(gateway: TrainingGateway) -> None:
    dataset = await upload(gateway)
    for data in (b"first", b"second"):
        await gateway.client.put(f"{dataset}/files/a/1.jpg", content=data)
    assert stored(gateway, dataset) == {"a/1.jpg": b"second"}


async def test_a_completed_upload_takes_no_more(gateway: TrainingGateway) -> None:
    dataset = await upload(gateway)
    await gateway.client.put(f"{dataset}/archive", content=archive("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"))
    await gateway.client.post(f"{dataset}/complete")
    for request in (
        gateway.client.put(f"{dataset}/files/a/3.jpg", content=b"x"),
        gateway.client.put(f"{dataset}/archive", content=archive("a/3.jpg")),
        gateway.client.post(f"{dataset}/upload-urls", json={"paths": ["a/3.jpg"]}),
    ):
        problem(await request, 409, "conflict")


async def test_an_upload_that_cannot_be_trained_on_stays_open(gateway: TrainingGateway) -> None:
    dataset = await upload(gateway)
    problem(await gateway.client.post(f"{dataset}/complete"), 422, "dataset_empty")
    await gateway.client.put(f"{dataset}/archive", content=archive("a/1.jpg", "a/2.jpg"))
    problem(await gateway.client.post(f"{dataset}/complete"), 422, "dataset_too_few_classes")
    await gateway.client.put(f"{dataset}/archive", content=archive("b/1.jpg", "b/2.jpg"))
    assert (await gateway.client.post(f"{dataset}/complete")).json()["state"] == "ready"


@pytest.mark.parametrize(
    "path",
    [
        *("a/%2e%2e/%2e%2e/x.jpg", "%2e%2e/x/1.jpg", "%2fetc/x/1.jpg", "a%5c..%5cx/1.jpg", "1.jpg", "a/.hidden.jpg"),
        *("a//1.jpg", "a/1.jpg/", "a/%00.jpg", "a/" + "x" * 300, "a/" + "x/" * 300 + "1.jpg", ".git/config"),
    ],
)
async def test_a_path_that_cannot_be(gateway: TrainingGateway, path: str) -> None:
    dataset = await upload(gateway)
    response = await gateway.client.put(f"{dataset}/files/{path}", content=b"x")
    assert 400 <= response.status_code < 500
    assert response.headers["content-type"] == "application/problem+json"
    assert stored(gateway, dataset) == {}


async def test_a_file_over_the_limit_is_refused_announced_or_not(tmp_path: Path, empty_sqlite_url: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(50_000)

    async with training_gateway(
        tmp_path, empty_sqlite_url, max_upload_bytes=100_000, max_request_bytes=2_000
    ) as gateway:
        dataset = await upload(gateway)
        announced = await gateway.client.put(f"{dataset}/files/a/1.jpg", content=bytes(100_001))
        problem(announced, 413, "payload_too_large")
        problem(await gateway.client.put(f"{dataset}/files/a/2.jpg", content=chunks()), 413, "payload_too_large")
        assert stored(gateway, dataset) == {}
        # Files have their own limit, not that of other requests' bodies.
        fits = await gateway.client.put(f"{dataset}/files/a/3.jpg", content=bytes(100_000))
        assert fits.json()["size_bytes"] == 100_000


async def test_an_archive_is_unpacked(gateway: TrainingGateway) -> None:
    dataset = await upload(gateway)
    data = archive("photos/a/1.jpg", "photos/b/1.jpg", "photos/.DS_Store", "__MACOSX/photos/a/._1.jpg")
    response = await gateway.client.put(f"{dataset}/archive", content=data)
    assert (response.status_code, response.json()) == (201, {"file_count": 2})
    assert stored(gateway, dataset) == {"a/1.jpg": b"photos/a/1.jpg", "b/1.jpg": b"photos/b/1.jpg"}


async def test_a_bad_archive_stores_nothing_and_leaves_no_file(tmp_path: Path, empty_sqlite_url: str) -> None:
    async with training_gateway(tmp_path, empty_sqlite_url, max_archive_bytes=5_000) as gateway:
        dataset = await upload(gateway)
        for data, status, code in (
            (archive("a/1.jpg", "../b/1.jpg"), 400, "invalid_request"),
            (archive("a/1.jpg", "b/1.jpg")[:-30], 400, "invalid_request"),
            (b"GIF89a", 415, "unsupported_media_type"),
            (bytes(5_001), 413, "payload_too_large"),
        ):
            problem(await gateway.client.put(f"{dataset}/archive", content=data), status, code)
        assert stored(gateway, dataset) == {}
        assert not any(path.is_file() for path in gateway.settings.home.rglob("*"))


async def test_upload_urls_lead_where_files_are_taken(gateway: TrainingGateway) -> None:
    dataset = await upload(gateway)
    body = {"paths": ["a b/1 ?.jpg", "été/#2.jpg"]}
    urls = (await gateway.client.post(f"{dataset}/upload-urls", json=body)).json()["urls"]
    assert [each["path"] for each in urls] == body["paths"]
    for each in urls:
        response = await gateway.client.request(each["method"], each["url"], content=each["path"].encode())
        assert response.status_code == 201
    assert stored(gateway, dataset) == {path: path.encode() for path in body["paths"]}
    problem(await gateway.client.post(f"{dataset}/upload-urls", json={"paths": ["../1.jpg"]}), 400, "invalid_request")


# --- the preflight report -------------------------------------------------------------------------------------------


async def test_the_newest_preflight_report_is_shown(gateway: TrainingGateway) -> None:
    dataset_id = DatasetId(await gateway.dataset())
    path = f"/v1/datasets/{dataset_id}/report"
    problem(await gateway.client.get(path), 404, "not_found")
    for fingerprint, count in (("f" * 64, 5), ("a" * 64, 6)):
        report: dict[str, Any] = {
            "image_count": count,
            "classes": [],
            "quarantined": [{"path": "a/1.jpg", "reason": "corrupt", "message": "broken"}],
            "duplicate_count": 0,
            "warnings": ["few images"],
            "ignored_count": 0,
        }
        manifest = DatasetManifest(
            dataset_id=dataset_id,
            fingerprint=fingerprint,
            labels=[],
            images=[],
            report=PreflightReport.model_validate(report),
        )
        key = names.dataset_manifest(dataset_id, fingerprint)
        gateway.store.put(key, manifest.model_dump_json().encode())
    assert (await gateway.client.get(path)).json() == report
