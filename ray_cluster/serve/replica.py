"""A trunk replica: one process that serves every model on its trunk. Imports no TensorFlow."""

import logging
import os
import time

from starlette.requests import Request
from starlette.responses import Response

from ray_cluster.serve.measures import ReplicaMeasures
from ray_cluster.serve.service import TrunkService
from ray_cluster.vision.engines import KINDS, load_engine
from ray_cluster.vision.engines.choice import choose
from ray_cluster.vision.trunks import read_trunk
from services.contracts.errors import NotFound
from services.contracts.serving import TrunkApplicationArgs
from services.runtime.objects import open_store

log = logging.getLogger("ray.serve")


class TrunkReplica:
    """What Ray Serve runs: loads the trunk, then answers requests."""

    def __init__(self, args: dict[str, object]) -> None:
        """Loads one engine for each thread, or one on its GPU that they share; `args` is a dumped
        `TrunkApplicationArgs`.

        Raises `NotFound` when the trunk is not in the bucket and `CorruptObject` when it is damaged; Serve retries.
        """
        started_at = time.perf_counter()
        settings = TrunkApplicationArgs.model_validate(args)
        store = open_store(settings.bucket_uri)
        trunk = read_trunk(store, settings.trunk_id)
        if trunk is None:
            raise NotFound(f"trunk {settings.trunk_id} is not in {settings.bucket_uri}")
        threads = settings.threads or os.cpu_count() or 1
        chosen = choose(store, [trunk], gpu=settings.num_gpus > 0).engine
        count = 1 if KINDS[chosen].on_gpu else threads
        engines = [load_engine(store, trunk, chosen) for _ in range(count)] * (threads // count)
        self._measures = ReplicaMeasures()
        self._service = TrunkService(
            store,
            trunk,
            engines,
            tail_cache_bytes=settings.tail_cache_bytes,
            max_waiting=settings.max_waiting_images,
            on_batch=self._measures.count_batch,
        )
        log.info(
            "trunk.loaded",
            extra={
                "trunk_id": trunk.trunk_id,
                "engine": engines[0].name,
                "engine_count": count,
                "duration_s": round(time.perf_counter() - started_at, 3),
            },
        )

    async def __call__(self, request: Request) -> Response:
        """Answers one request."""
        return await self._service.handle(request)

    def check_health(self) -> None:
        """Serve calls this every few seconds, and replaces the replica when it raises."""
        standing = self._service.standing()
        self._measures.show(waiting=standing.waiting, heads=standing.heads, head_bytes=standing.head_bytes)
        self._service.check_health()
