"""A server that speaks `contracts/serving.py` and Ray Serve's own plain-text answers, over real HTTP."""

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager

import uvicorn
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from services.contracts.predictions import NDJSON
from services.contracts.serving import CHALLENGER_HEADER, PREDICTION_HEADER, unpack

REJECTED = b"not an image"
HEAT_MAP = [[0.0, 0.5], [1.0, 0.25]]


class FakeServe:
    """Answers for the trunks in `deployed`; every image gets the label that its own bytes spell."""

    def __init__(self) -> None:
        self.deployed: set[str] = set()
        self.versions: dict[tuple[str, int], str] = {}
        """The trunk of each version in the bucket."""
        self.answers_first: list[Response] = []
        """Given to the next requests, in order, before anything else is looked at."""
        self.answers_to: dict[bytes, Response] = {}
        """Given to every request with these images."""
        self.gates: dict[bytes, threading.Event] = {}
        """These images are answered once theirs is set."""
        self.opinions: dict[tuple[str, int], str] = {}
        """The label of every image by these versions, in place of what its bytes spell."""
        self.challenger_gate = threading.Event()
        """Challengers have their say once it is set, as it is at first."""
        self.challenger_gate.set()
        self.challenger_version = 0
        """Requests for this version wait at that gate as well."""
        self.challengers = 0
        """Scores that were begun on another version's pass."""
        self.knows_challengers = True
        self.delay_s = 0.0
        self.requests: Counter[str] = Counter()
        self.batches: list[int] = []
        """Images of each batch."""
        self.in_progress = 0
        self.most_in_progress = 0

    async def __call__(self, request: Request) -> Response:
        if request.url.path == "/-/healthz":
            return PlainTextResponse("success")
        self.requests[request.url.path] += 1
        self.in_progress += 1
        self.most_in_progress = max(self.most_in_progress, self.in_progress)
        try:
            body = await request.body()
            images = [image for _, image in unpack(body)] if request.url.path.endswith("-batch") else [body]
            await asyncio.sleep(self.delay_s)
            for image in images:
                while image in self.gates and not self.gates[image].is_set():  # noqa: ASYNC110 - set by another thread
                    await asyncio.sleep(0.005)
            if self._is_second_request(request, body):
                while not self.challenger_gate.is_set():  # noqa: ASYNC110 - it is set by another thread
                    await asyncio.sleep(0.005)
            told = next((self.answers_to[image] for image in images if image in self.answers_to), None)
            if told is not None:
                return told
            return self.answers_first.pop(0) if self.answers_first else self._answer(request, body)
        finally:
            self.in_progress -= 1

    def _is_second_request(self, request: Request, body: bytes) -> bool:
        """Whether it is for a version that only challenges."""
        batch = request.url.path.endswith("-batch")
        versions = [each.version for each, _ in unpack(body)] if batch else [int(request.query_params["version"])]
        return self.challenger_version in versions

    def _answer(self, request: Request, body: bytes) -> Response:
        _, trunks, trunk_id, call = request.url.path.split("/")
        assert (trunks, request.method) == ("trunks", "POST")
        if trunk_id not in self.deployed:
            return PlainTextResponse(f"Path '{request.url.path}' not found.", 404)
        if call == "predict-batch":
            asked = unpack(body)
            self.batches.append(len(asked))
            answers = [self._predict(trunk_id, each.model, each.version, each.top_k, image) for each, image in asked]
            return JSONResponse({"answers": [answer for _, answer in answers]})
        query = request.query_params
        if call == "explain":
            return self._explain(trunk_id, query, body)
        assert call == "predict"
        model = query["model"]
        status, answer = self._predict(trunk_id, model, int(query["version"]), int(query["top_k"]), body)
        challenger = request.headers.get(CHALLENGER_HEADER)
        if status != 200 or challenger is None or not self.knows_challengers:
            return JSONResponse(answer, status)
        return StreamingResponse(self._lines(answer, body, model, int(challenger)), media_type=NDJSON)

    def _predict(
        self, trunk_id: str, model: str, version: int, top_k: int, image: bytes
    ) -> tuple[int, dict[str, object]]:
        """Status and body for one image."""
        if self.versions.get((model, version)) != trunk_id:
            return 404, {"code": "not_found", "message": f"model {model!r} has no version {version}"}
        if image == REJECTED:
            details = {"reason": "not_an_image"}
            return 422, {"code": "image_rejected", "message": "the file is not an image", "details": details}
        ranked = [
            {"label": self._label(image, model, version), "probability": 0.75, "index": 1},
            {"label": "other", "probability": 0.25, "index": 0},
        ]
        return 200, {"predictions": ranked[:top_k]}

    def _explain(self, trunk_id: str, query: QueryParams, image: bytes) -> Response:
        """The picture is the image's bytes. All versions have the label `other`, and the one that the image spells."""
        status, answer = self._predict(trunk_id, query["model"], int(query["version"]), 2, image)
        if status != 200:
            return JSONResponse(answer, status)
        found = [each for each in answer["predictions"] if query.get("label", each["label"]) == each["label"]]
        if not found:
            refused = {"code": "label_unknown", "message": "it has 'other'", "details": {"labels": ["other"]}}
            return JSONResponse(refused, 422)
        if query["format"] == "json":
            return JSONResponse({"prediction": found[0], "map": HEAT_MAP})
        return Response(image, 200, {PREDICTION_HEADER: json.dumps(found[0])}, "image/png")

    def _label(self, body: bytes, model: str, version: int) -> str:
        return self.opinions.get((model, version), f"{body.decode()} by {model} v{version}")

    async def _lines(self, answer: dict, body: bytes, model: str, challenger: int) -> AsyncGenerator[str, None]:
        self.challengers += 1
        yield json.dumps(answer) + "\n"
        while not self.challenger_gate.is_set():  # noqa: ASYNC110 - it is set by another thread
            await asyncio.sleep(0.005)
        if (model, challenger) in self.versions:
            yield json.dumps({"label": self._label(body, model, challenger)}) + "\n"
        else:
            yield json.dumps({"label": None, "error": "not_found: no such version"}) + "\n"


def proxy_busy() -> Response:
    """Serve's answer when `max_queued_requests` is exceeded."""
    return PlainTextResponse("Request dropped due to backpressure", 503, {"retry-after": "2"})


def no_replica() -> Response:
    """Serve's answer while a deployment has no replica."""
    return PlainTextResponse("Deployment is unavailable", 503)


def replica_died() -> Response:
    """Serve's answer when the replica dies with the request."""
    return PlainTextResponse("Internal Server Error", 500)


@contextmanager
def running(fake: FakeServe, port: int) -> Generator[str, None, None]:
    """The fake on 127.0.0.1:`port` in a thread; gives its URL."""

    async def app(scope: dict, receive: object, send: object) -> None:
        assert scope["type"] == "http"
        response = await fake(Request(scope, receive))
        await response(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, lifespan="off", log_config=None, access_log=False))
    listening = threading.Event()
    serve = server.startup

    async def startup(sockets: list[socket.socket] | None = None) -> None:
        await serve(sockets)
        listening.set()

    server.startup = startup
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert listening.wait(10), "the fake server did not start"
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
