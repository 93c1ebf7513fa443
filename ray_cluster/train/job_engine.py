"""The engine of a job's trunks: one in all its attempts and on all its nodes, since its last bits go into the weights.

What was measured beside a trunk is a cache and may be lost; what a job was given is written down with the job.
"""

import logging
from collections.abc import Sequence
from functools import partial

import ray
from pydantic import ValidationError

from ray_cluster.train import dispatch, tasks
from ray_cluster.train.context import AttemptContext
from ray_cluster.train.here import here
from ray_cluster.train.machines import Place
from ray_cluster.train.work import Done, Span
from ray_cluster.vision.engines import KINDS, choice
from services.contracts import names
from services.contracts.errors import CorruptObject, NotFound
from services.contracts.ids import JobId
from services.contracts.jobs import Stage
from services.contracts.models import EngineChoice, TrunkManifest
from services.runtime.objects import ObjectStore

GPU_SHARE = 0.1
"""Of a GPU, that a task on one reserves: several share it, so that their cores can decode for it."""

_log = logging.getLogger(__name__)


class PendingEngine:
    """The engine that an earlier attempt used, or that is being chosen meanwhile on a node of the job's."""

    def __init__(self, context: AttemptContext, stage: Stage) -> None:
        """`stage` is the one that waits for it. Raises `CorruptObject`."""
        self._context = context
        self._stage = stage
        self._choice = _read(context.store, context.record.job_id)
        self._begun: tuple[ray.ObjectRef[Done[EngineChoice]], Place] | None = None
        self._with_gpu = False
        self.spans: list[Span] = []
        """When it was chosen; empty where nothing had to be measured."""

    @property
    def chosen(self) -> EngineChoice | None:
        """The engine, where it is known by now."""
        return self._choice

    def begin(self, trunks: Sequence[TrunkManifest]) -> None:
        """Begins to choose for these trunks, unless that is done or under way. Raises like `choice.contenders`."""
        if self._choice is not None or self._begun is not None:
            return
        place = self._context.capacity.place
        known = None if place.accelerator is not None else choice.known(trunks) or self._standing(trunks)
        if known is not None:
            self._choice = self._pin(known)
        else:
            self._begun = self._submit(trunks, place), place

    def wait(self, trunks: Sequence[TrunkManifest]) -> EngineChoice:
        """The engine for these trunks. Raises like `choice.contenders`."""
        self.begin(trunks)
        if self._choice is None:
            chosen = self._chosen(trunks)
            if not self._with_gpu and self._has_gpus():
                # No node was there when it was begun, so nobody knew that they have GPUs.
                self._begun = None
                self.begin(trunks)
                chosen = self._chosen(trunks)
            self._choice = self._pin(chosen)
        _log.info("the trunk runs on %s", self._choice.engine)
        return self._choice

    def _standing(self, trunks: Sequence[TrunkManifest]) -> EngineChoice | None:
        """What was measured before on a machine like this one, where the job's work may run here: without a task,
        whose process takes a second to start."""
        machine = here()
        if machine is None or machine.node_id not in self._context.capacity.nodes(dispatch.TASK_CPUS):
            return None
        return choice.standing(self._context.store, trunks)

    def _chosen(self, trunks: Sequence[TrunkManifest]) -> EngineChoice:
        assert self._begun is not None  # noqa: S101
        submit = partial(self._submit, trunks)
        done = dispatch.run_one(submit, self._begun, self._context.capacity, self._stage)
        self.spans.append(done.span)
        return done.result

    def _submit(self, trunks: Sequence[TrunkManifest], place: Place) -> "ray.ObjectRef[Done[EngineChoice]]":
        self._with_gpu = self._has_gpus()
        share = GPU_SHARE if self._with_gpu else 0
        task = tasks.choose_engine_task.options(label_selector=place.selector(), num_gpus=share)
        return task.remote(self._context.bucket_uri, list(trunks), self._with_gpu)

    def _has_gpus(self) -> bool:
        """Whether the job asks for an accelerator, and a node that is there has one to reserve."""
        capacity = self._context.capacity
        return capacity.place.accelerator is not None and capacity.has_gpus(dispatch.TASK_CPUS)

    def _pin(self, chosen: EngineChoice) -> EngineChoice:
        store, job_id = self._context.store, self._context.record.job_id
        data = chosen.model_dump_json().encode()
        if store.put(names.job_engine(job_id), data, if_absent=True) is None:
            return _read(store, job_id) or chosen
        return chosen


def gpu_share(chosen: EngineChoice) -> float:
    """The option `num_gpus` of a task that runs this engine."""
    return GPU_SHARE if KINDS[chosen.engine].on_gpu else 0


def _read(store: ObjectStore, job_id: JobId) -> EngineChoice | None:
    key = names.job_engine(job_id)
    try:
        chosen = EngineChoice.model_validate_json(store.get(key))
    except NotFound:
        return None
    except ValidationError as error:
        raise CorruptObject(f"{key} cannot be read: {error}") from error
    if chosen.engine not in KINDS:
        raise CorruptObject(f"{key} names an engine that this release does not know: {chosen.engine}")
    return chosen
