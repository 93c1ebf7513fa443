"""Serving on a real Ray cluster, deployed by Serve's declarative config as the reconciler does it."""

import asyncio
import io
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx2
import numpy as np
import psutil
import pytest
from PIL import Image

from ray_cluster.vision.engines import load_engine
from ray_cluster.vision.engines.choice import choose
from ray_cluster.vision.images import decode
from ray_cluster.vision.tails import Tail
from services.contracts.backbones import BackboneName
from services.contracts.base import utc_now
from services.contracts.models import TrunkManifest
from services.contracts.predictions import NDJSON
from services.contracts.serving import ReplicaError, ReplicaPrediction, application_name, trunk_route
from services.inference.main import build_app
from services.runtime.database.tables import ModelAliasRow, ModelVersionRow
from services.runtime.objects import ObjectStore, open_store
from services.runtime.settings import Settings
from services.training.reconciler.serve_applications import ServeTarget, desired_config
from tests.servers.make_trunk import make_trunk
from tests.servers.published import publish, random_tail
from tests.servers.ray_local import LocalRay

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

READY_TIMEOUT_S = 180
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Served:
    """A trunk's application that runs, and what it serves."""

    ray: LocalRay
    store: ObjectStore
    trunk: TrunkManifest
    tails: dict[str, Tail]
    url: str

    def deploy(self, *, running: bool = True) -> None:
        """Asks Serve for the application, or for none."""
        port = int(self.url.rpartition(":")[2])
        target = ServeTarget(self.store.uri, "127.0.0.1", port)
        config = desired_config([self.trunk.trunk_id] if running else [], target)
        httpx2.put(f"{self.ray.dashboard_url}/api/serve/applications/", json=config, timeout=120).raise_for_status()

    def application(self) -> dict | None:
        details = httpx2.get(f"{self.ray.dashboard_url}/api/serve/applications/", timeout=30).json()
        return details["applications"].get(application_name(self.trunk.trunk_id))

    def replicas(self) -> list[dict]:
        app = self.application()
        assert app is not None
        (deployment,) = app["deployments"].values()
        return [replica for replica in deployment["replicas"] if replica["state"] == "RUNNING"]

    def wait_until_running(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while (app := self.application()) is None or app["status"] != "RUNNING":
            assert app is None or app["status"] in {"DEPLOYING", "NOT_STARTED"}, app
            assert time.monotonic() < deadline, app
            time.sleep(0.2)

    def ask(self, client: httpx2.Client, model: str, image: bytes, version: int = 1) -> httpx2.Response:
        query = {"model": model, "version": version, "top_k": 1000}
        return client.post(f"{self.url}{trunk_route(self.trunk.trunk_id)}/predict", params=query, content=image)

    def expected(self, model: str, image: bytes) -> np.ndarray:
        """The probabilities without any server: engine, then tail."""
        pixels_HWC = decode(image, self.trunk.image_size)
        engine = choose(self.store, [self.trunk]).engine  # what the replica found
        features_BD = load_engine(self.store, self.trunk, engine).features(pixels_HWC[np.newaxis])
        return self.tails[model].probabilities(features_BD)[0]


@pytest.fixture(scope="module")
def served(ray_local: LocalRay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    store = open_store(tmp_path_factory.mktemp("bucket").as_uri())
    trunk = make_trunk(store, BackboneName.REKINDLE_TINY, 64, None, ray_local.env)
    tails = {name: random_tail(trunk.feature_dim, classes, seed) for seed, (name, classes) in enumerate(MODELS.items())}
    for name, tail in tails.items():
        publish(store, trunk, name, 1, tail, [f"{name} {k}" for k in range(tail.class_count)])
    publish(store, trunk, "pets", 2, tails["pets"], [f"pets {k}" for k in range(tails["pets"].class_count)])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    served = Served(ray_local, store, trunk, tails, url)
    served.deploy()
    served.wait_until_running()
    yield served
    httpx2.delete(f"{ray_local.dashboard_url}/api/serve/applications/", timeout=60)


MODELS = {"flowers": 5, "pets": 40}


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client(timeout=60) as client:
        yield client


@pytest.fixture
async def gateway(served: Served, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    app = build_app(Settings(home=tmp_path, serve_url=served.url, predict_deadline_s=120))
    async with app.router.lifespan_context(app):
        async with app.state.database.transaction() as session:
            session.add(
                ModelAliasRow(model_name="pets", alias="trial", version=1, shadow_version=2, updated_at=utc_now())
            )
            for name, version in (*((name, 1) for name in served.tails), ("pets", 2)):
                session.add(
                    ModelVersionRow(
                        model_name=name,
                        version=version,
                        created_at=utc_now(),
                        job_id="job_1",
                        trunk_id=served.trunk.trunk_id,
                        manifest={},
                    )
                )
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway", timeout=150) as client:
            yield client


def picture(seed: int, kind: str = "JPEG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def probabilities(predictions: list[dict]) -> np.ndarray:
    """By class index; checks that they are ranked."""
    ranked = [each["probability"] for each in predictions]
    assert ranked == sorted(ranked, reverse=True)
    return np.array([each["probability"] for each in sorted(predictions, key=lambda each: each["index"])])


def test_two_models_share_one_replica_and_answer_as_engine_and_tail_do(served: Served, client: httpx2.Client) -> None:
    questions = [(model, picture(seed, kind)) for seed in range(6) for model in MODELS for kind in ("JPEG", "PNG")]
    with ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(lambda question: served.ask(client, *question), questions))
    for (model, image), response in zip(questions, responses, strict=True):
        assert response.status_code == 200, response.text
        predictions = ReplicaPrediction.model_validate_json(response.content).predictions
        assert all(each.label == f"{model} {each.index}" for each in predictions)
        shown = probabilities(response.json()["predictions"])
        np.testing.assert_allclose(shown, served.expected(model, image), rtol=0, atol=TOLERANCE)
    assert len(served.replicas()) == 1


def test_the_same_image_gets_the_same_bits_whoever_shares_its_batch(served: Served, client: httpx2.Client) -> None:
    alone = served.ask(client, "pets", picture(1)).content
    with ThreadPoolExecutor(8) as threads:
        models = ["flowers", "pets"] * 8
        crowded = list(threads.map(lambda model: served.ask(client, model, picture(1)).content, models))
    assert set(crowded[1::2]) == {alone}


def test_what_cannot_be_answered(served: Served, client: httpx2.Client) -> None:
    bad = served.ask(client, "flowers", b"no image")
    assert (bad.status_code, ReplicaError.model_validate_json(bad.content).code) == (422, "image_rejected")
    for model, version in (("flowers", 2), ("roses", 1)):
        unknown = served.ask(client, model, picture(0), version)
        assert (unknown.status_code, ReplicaError.model_validate_json(unknown.content).code) == (404, "not_found")


def test_a_replica_maps_no_tensorflow(served: Served) -> None:
    (replica,) = served.replicas()
    maps = Path(f"/proc/{replica['pid']}/maps").read_text()
    assert "ai_edge_litert" in maps
    assert "/site-packages/tensorflow/" not in maps
    print(f"replica: {psutil.Process(replica['pid']).memory_full_info().uss / 2**20:.0f} MiB of its own")


async def test_through_the_gateway(served: Served, gateway: httpx2.AsyncClient) -> None:
    files = [("images", (f"{seed}.jpg", picture(seed))) for seed in range(12)]
    files.insert(5, ("images", ("notes.txt", b"no image")))
    response = await gateway.post("/v1/models/pets/predict", files=files, params={"top_k": 1000})
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert (results[5]["status"], results[5]["code"]) == ("error", "image_rejected")
    del results[5]
    for seed, result in enumerate(results):
        assert result["image"] == f"{seed}.jpg"
        expected = served.expected("pets", picture(seed))
        np.testing.assert_allclose(probabilities(result["predictions"]), expected, rtol=0, atol=TOLERANCE)


async def test_a_challenger_is_scored_on_the_same_pass(gateway: httpx2.AsyncClient) -> None:
    files = [("images", (f"{seed}.jpg", picture(seed))) for seed in range(5)]
    response = await gateway.post("/v1/models/pets/predict", files=files, params={"alias": "trial"})
    assert (response.status_code, response.json()["version"]) == (200, 1)
    labels = 'alias="trial",challenger="2",model="pets",outcome="agreed",version="1"'
    async with asyncio.timeout(30):
        while f"{{{labels}}} 5.0" not in (await gateway.get("/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_an_answer_is_explained(served: Served, gateway: httpx2.AsyncClient) -> None:
    image = [("images", ("1.jpg", picture(1)))]
    answers = [
        await gateway.post(f"/v1/models/pets/{call}", files=image, headers={"accept": kind})
        for call, kind in (("predict", "application/json"), ("explain", "application/json"), ("explain", "image/png"))
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200], answers[-1].text
    best, shown = answers[0].json()["results"][0]["predictions"][0], answers[1].json()
    assert (shown["label"], shown["index"]) == (best["label"], best["index"])
    assert shown["probability"] == pytest.approx(best["probability"], abs=TOLERANCE)
    assert (shown["height"], shown["width"]) == np.shape(shown["map"]) == (4, 4)
    assert np.max(shown["map"]) == 1
    drawn = Image.open(io.BytesIO(answers[2].content))
    assert (drawn.format, drawn.size) == ("PNG", (160, 120))
    assert answers[2].headers["x-rekindle-label"] == quote(best["label"], safe="")
    unknown = await gateway.post("/v1/models/pets/explain", files=image, params={"label": "dragon"})
    assert (unknown.status_code, unknown.json()["details"]["label_count"]) == (422, MODELS["pets"])


async def test_answers_are_streamed(gateway: httpx2.AsyncClient) -> None:
    files = [("images", (f"{seed}.jpg", picture(seed))) for seed in range(20)] + [("images", ("bad.txt", b"no image"))]
    response = await gateway.post("/v1/models/pets/predict?version=1", files=files, headers={"accept": NDJSON})
    start, *images, end = [json.loads(line) for line in response.text.splitlines()]
    assert (start["version"], start["image_count"], end) == (1, 21, {"type": "end", "failed_count": 1})
    assert {image["index"]: image["status"] for image in images} == dict.fromkeys(range(20), "ok") | {20: "error"}


async def test_a_flood_for_one_model_refuses_that_model_only(served: Served) -> None:
    image = picture(0)

    async def ask(client: httpx2.AsyncClient, model: str) -> httpx2.Response:
        query = {"model": model, "version": 1, "top_k": 1}
        return await client.post(f"{trunk_route(served.trunk.trunk_id)}/predict", params=query, content=image)

    limits = httpx2.Limits(max_connections=300)
    async with httpx2.AsyncClient(base_url=served.url, timeout=60, limits=limits) as client:
        flood = [asyncio.create_task(ask(client, "flowers")) for _ in range(240)]
        await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
        others = await asyncio.gather(*(ask(client, "pets") for _ in range(12)))
        flooding = await asyncio.gather(*flood)
    assert [response.status_code for response in others] == [200] * 12
    refused = [response for response in flooding if response.status_code != 200]
    print(f"{len(refused)} of {len(flood)} refused")
    assert {response.status_code for response in refused} <= {503}
    # Where the replica is slow, Serve's proxy refuses as well: it holds so many requests and knows no models.
    by_replica = [response for response in refused if not response.text.startswith("Request dropped due to")]
    assert {ReplicaError.model_validate_json(response.content).code for response in by_replica} <= {"overloaded"}
    assert all("'flowers'" in response.text for response in by_replica)


async def test_a_killed_replica_costs_time_and_no_answer(served: Served, gateway: httpx2.AsyncClient) -> None:
    (replica,) = served.replicas()

    async def ask(seed: int) -> int:
        response = await gateway.post(
            "/v1/models/flowers/predict", content=picture(seed), headers={"content-type": "image/jpeg"}
        )
        return response.status_code

    assert await ask(0) == 200
    os.kill(replica["pid"], signal.SIGKILL)
    assert await asyncio.gather(*(ask(seed) for seed in range(20))) == [200] * 20
    assert [each["pid"] for each in served.replicas()] != [replica["pid"]]


async def test_a_request_is_held_while_its_model_is_deployed(served: Served, gateway: httpx2.AsyncClient) -> None:
    await asyncio.to_thread(served.deploy, running=False)
    async with asyncio.timeout(60):
        while await asyncio.to_thread(served.application) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    held = asyncio.create_task(
        gateway.post("/v1/models/pets/predict", content=picture(3), headers={"content-type": "image/jpeg"})
    )
    await asyncio.wait([held], timeout=1)
    assert not held.done()
    await asyncio.to_thread(served.deploy)
    response = await held
    assert response.status_code == 200, response.text
    assert response.json()["model_name"] == "pets"
