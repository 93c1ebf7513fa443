"""What a replica answers to questions for reasons: small networks whose maps are the image itself."""

import asyncio
import io
import threading
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from ray_cluster.serve.classifier import Classifier
from ray_cluster.serve.explainer import MAX_SIDE, Explainer, WhyQuestion
from ray_cluster.serve.model_tails import LabelledTail, TailKey, load_tail
from ray_cluster.serve.service import EXPLANATIONS_WAITING, TrunkService
from ray_cluster.vision.engines import load_engine
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.verified import reference
from services.contracts import names
from services.contracts.models import ModelManifest, TrunkManifest
from services.contracts.predictions import Prediction
from services.contracts.serving import PREDICTION_HEADER, ReplicaExplanation
from services.runtime.objects import ObjectStore, open_store
from tests.servers.published import made_up_trunk, publish
from tests.servers.small_networks import mean_colour, mean_colour_classes
from tests.unit.serve.test_service import app_of

SIZE = 8
COLOURS = ["red", "grün", "blue"]
KERNEL_DK = np.eye(3, dtype=np.float32) / 8
BY_COLOUR = Tail(KERNEL_DK, np.zeros(3, np.float32))


class Bucket:
    """A bucket that counts how often a key is read, and holds readers up while its gate is closed."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.gate = threading.Event()
        self.gate.set()
        self.held = threading.Event()
        self.reads: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def get(self, key: str) -> bytes:
        self.reads.append(key)
        if key.endswith(".tflite"):
            self.held.set()
            assert self.gate.wait(20)
        return self._store.get(key)


@pytest.fixture
def store(tmp_path: Path) -> Bucket:
    return Bucket(open_store(tmp_path.as_uri()))


@pytest.fixture
def trunk(store: Bucket) -> TrunkManifest:
    trunk = made_up_trunk(3, image_size=SIZE)
    artefact = reference(names.trunk_artefact(trunk.trunk_id, "trunk.tflite"), mean_colour(SIZE))
    store.put(artefact.key, mean_colour(SIZE))
    return trunk.model_copy(update={"artefacts": {"litert": artefact}})


def picture(width: int = 80, height: int = 40) -> bytes:
    """Red in its right half, blue elsewhere."""
    image = Image.new("RGB", (width, height), (0, 0, 200))
    image.paste((250, 0, 0), (width // 2, 0, width, height))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def assert_halves(explanation: ReplicaExplanation, *, left: float, right: float) -> None:
    """The map, but for the two columns that meet."""
    rows = [[*row[: SIZE // 2 - 1], *row[SIZE // 2 + 1 :]] for row in explanation.map]
    assert rows == [[left] * (SIZE // 2 - 1) + [right] * (SIZE // 2 - 1)] * SIZE


@pytest.fixture
def service(store: Bucket, trunk: TrunkManifest) -> TrunkService:
    publish(store, trunk, "colours", 1, BY_COLOUR, COLOURS)
    return TrunkService(store, trunk, [load_engine(store, trunk)], tail_cache_bytes=1_000_000, max_waiting=4)


def client_of(service: TrunkService) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app_of(service)), base_url="http://replica")


async def why(client: httpx2.AsyncClient, image: bytes, **query: object) -> httpx2.Response:
    return await client.post("/explain", params={"model": "colours", "version": 1} | query, content=image)


async def test_the_map_shows_where_the_most_probable_label_or_another_one_is_seen(service: TrunkService) -> None:
    async with client_of(service) as client:
        best = ReplicaExplanation.model_validate_json((await why(client, picture())).content)
        blue = ReplicaExplanation.model_validate_json((await why(client, picture(), label="blue")).content)
        predicted = await client.post("/predict?model=colours&version=1", content=picture())
    assert [best.prediction, blue.prediction] == [
        Prediction.model_validate(each) for each in predicted.json()["predictions"][:2]
    ]
    assert_halves(best, left=0, right=1)
    assert_halves(blue, left=1, right=0)


async def test_a_picture_has_the_images_proportions_and_says_what_it_shows(service: TrunkService) -> None:
    async with client_of(service) as client:
        large = await why(client, picture(2 * MAX_SIDE, MAX_SIDE), format="png", label="grün")
        small = await why(client, picture(80, 40), format="png")
    assert large.headers["content-type"] == "image/png"
    assert Prediction.model_validate_json(large.headers[PREDICTION_HEADER]).label == "grün"
    assert Image.open(io.BytesIO(large.content)).size == (MAX_SIDE, MAX_SIDE // 2)
    shown_HWC = np.asarray(Image.open(io.BytesIO(small.content)))
    assert shown_HWC.shape == (40, 80, 3)
    assert (shown_HWC[:, :25] == shown_HWC[0, 0, 0]).all()
    assert (np.ptp(shown_HWC[:, 55:].astype(int), axis=-1) > 100).all()


@pytest.mark.parametrize(
    ("image", "query", "code", "named"),
    [
        (picture(), {"label": "pink"}, "label_unknown", "'pink': it has 'red', 'grün', 'blue'"),
        (b"no image", {}, "image_rejected", "not an image"),
        (picture(), {"format": "gif"}, "invalid_request", "format"),
    ],
)
async def test_what_cannot_be_explained(
    service: TrunkService, image: bytes, query: dict, code: str, named: str
) -> None:
    async with client_of(service) as client:
        response = await why(client, image, **query)
    assert (response.status_code, response.json()["code"]) == (422, code)
    assert named in response.json()["message"]


async def test_explanations_hold_no_prediction_up_and_are_refused_when_many_wait(
    service: TrunkService, store: Bucket
) -> None:
    store.held.clear()
    store.gate.clear()
    async with client_of(service) as client:
        first = asyncio.create_task(why(client, picture()))
        assert await asyncio.to_thread(store.held.wait, 10)
        others = [asyncio.create_task(why(client, picture())) for _ in range(EXPLANATIONS_WAITING + 1)]
        (refused,), waiting = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        assert (refused.result().status_code, refused.result().json()["code"]) == (503, "overloaded")
        assert int(refused.result().headers["retry-after"]) > 0
        predicted = await client.post("/predict?model=colours&version=1", content=picture())
        assert predicted.status_code == 200
        store.gate.set()
        assert {(await task).status_code for task in (first, *waiting)} == {200}


def test_networks_are_loaded_once_and_only_so_many_are_kept(store: Bucket, trunk: TrunkManifest) -> None:
    cut = trunk.model_copy(update={"cut": "input", "feature_dim": SIZE * SIZE * 3, "artefacts": {}})
    keys = [publish_network(store, cut, version) for version in (1, 2)]
    tails = {key: load_tail(store, cut, key) for key in keys}
    classifier = Classifier([load_engine(store, cut)], SIZE)

    def loads(network_bytes: int) -> list[bool]:
        """Whether each of some questions reads a network."""
        explainer = Explainer(store, cut, classifier.features, network_bytes)
        found: list[bool] = []
        for key in (keys[0], keys[0], keys[1], keys[0]):
            store.reads.clear()
            found.append(answers_red(explainer, key, tails[key]) and any(".tflite" in read for read in store.reads))
        return found

    assert loads(10**6) == [True, False, True, False]
    assert loads(0) == [True, False, True, True]


def answers_red(explainer: Explainer, key: TailKey, tail: LabelledTail) -> bool:
    (answer,) = explainer.answer([WhyQuestion(picture(), key, tail, None, drawn=False)])
    assert isinstance(answer, ReplicaExplanation)
    assert answer.prediction.label == "red"
    assert_halves(answer, left=0, right=1)
    return True


def publish_network(store: ObjectStore, trunk: TrunkManifest, version: int) -> TailKey:
    """A version whose tail is a network."""
    data = mean_colour_classes(SIZE, KERNEL_DK)
    tail = reference(names.model_object("colours", version, 1, "tail.tflite"), data)
    store.put(tail.key, data)
    linear: ModelManifest = publish(store, trunk, "colours", version, BY_COLOUR, COLOURS)
    manifest = linear.model_copy(update={"tail_kind": "network", "tail": tail})
    store.put(names.model_manifest("colours", version), manifest.model_dump_json().encode())
    return TailKey("colours", version)
