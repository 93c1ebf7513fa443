"""One run: references, jobs, strikes, and what came of it."""

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.client import Rekindle
from services.contracts.ids import DatasetId
from services.contracts.jobs import JobState, TrainingJob
from tests.chaos.runner import jobs as chaos_jobs
from tests.chaos.runner.deployment import Deployment
from tests.chaos.runner.faults import Fault, Scene, Struck, fault_for, replace_ended_nodes, replace_killed_nodes
from tests.chaos.runner.jobs import Work
from tests.chaos.runner.measure import Window, counted, effect
from tests.chaos.runner.report import Ended, Felt, Results
from tests.chaos.runner.schedule import TRAINING, Manner, Strike
from tests.chaos.runner.watch import WatchedJob

VICTIM_WITHIN_S = 180.0
"""How long a strike waits for a victim: jobs may have to recover from the strike before."""
JOB_ENDS_S = 600.0
"""How long a job may go on after the last strike."""
REFERENCE_S = 900.0
POLL_S = 0.1

_log = logging.getLogger(__name__)


class RunFailed(Exception):
    """The run could not be carried out, or a job does not end."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a run does."""

    works: int = 3
    """Distinct pieces of work."""
    at_a_time: int = 2
    """Jobs that run side by side."""
    checkpoint_interval_s: float = 2.0
    stage_within_s: float = 20.0
    """How long a strike waits for a job in its stage, before any job that trains will do."""
    outage_s: float = 60.0
    notice_s: float = 30.0
    calm_s: float = 0.0
    """Between a strike that is overcome and the wait for the next: time for standbys to load."""


@dataclass(slots=True)
class Campaign:
    """Runs a plan against a deployment."""

    deployment: Deployment
    options: Options
    say: Callable[[str], None]
    seed: int
    works: list[Work] = field(default_factory=list[Work])
    references: list[str] = field(default_factory=list[str])
    """By work: the undisturbed run's weights."""
    jobs: list[WatchedJob] = field(default_factory=list[WatchedJob])
    struck: list[tuple[Strike, Struck]] = field(default_factory=list[tuple[Strike, Struck]])
    _datasets: dict[int, DatasetId] = field(default_factory=dict[int, DatasetId])

    def run(self, plan: Sequence[Strike]) -> Results:
        """Carries the plan out. Raises `RunFailed`."""
        self._draw()
        self._run_references()
        for gateway in self.deployment.gateways:
            gateway.start()
        for strike in plan:
            self._carry_out(strike)
        return self._conclude()

    # --- before ---

    def _draw(self) -> None:
        for number in range(self.options.works):
            self.works.append(chaos_jobs.draw(self.deployment.folder / "images" / str(number), number))
        self.say(f"{len(self.works)} pieces of work drawn")

    def _run_references(self) -> None:
        """Each work once, undisturbed: by a gateway with a database and a bucket prefix of its own, so that nothing
        that the struck jobs leave in the bucket can have come from here."""
        gateway = self.deployment.reference
        gateway.start()
        began_s = time.monotonic()
        with gateway.client() as client:
            created = [self._create(client, work, self._register(client, work)) for work in self.works]
            for job in created:
                client.training_jobs.wait(job.id, timeout_s=REFERENCE_S)
                (version,) = [each for each in client.models.versions(job.model_name) if each.job_id == job.id]
                self.references.append(client.models.version(job.model_name, version.version).weights_sha256)
        gateway.kill()
        self.say(f"{len(self.works)} undisturbed runs in {time.monotonic() - began_s:.0f} s")

    def _register(self, client: Rekindle, work: Work) -> DatasetId:
        return client.datasets.create_from_prefix(work.name, work.images.as_uri()).id

    def _create(self, client: Rekindle, work: Work, dataset_id: DatasetId) -> TrainingJob:
        return client.training_jobs.create(work.spec(dataset_id, self.options.checkpoint_interval_s))

    # --- while ---

    def _top_up(self) -> None:
        """So many jobs are under way as shall be."""
        active = sum(job.active for job in self.jobs)
        for _ in range(self.options.at_a_time - active):
            number = len(self.jobs)
            work = self.works[number % len(self.works)]
            gateway = self.deployment.gateways[number % len(self.deployment.gateways)]
            with gateway.client() as client:
                if work.number not in self._datasets:
                    self._datasets[work.number] = self._register(client, work)
                job = self._create(client, work, self._datasets[work.number])
            self.jobs.append(WatchedJob(job.id, work.number, gateway.client))

    def _carry_out(self, strike: Strike) -> None:
        self._top_up()
        preferred = self._await_stage(strike)
        time.sleep(strike.delay_s)
        fault = fault_for(strike)
        scene, victim = self._find(fault, strike, preferred)
        began_s = time.monotonic()
        struck = fault.strike(victim, scene)
        replace_ended_nodes(self.deployment)
        self.struck.append((strike, struck))
        self.say(
            f"{strike.number:4d}  {strike.target} {strike.manner}: {struck.victim}"
            f" ({strike.stage} wanted, {preferred.stage if preferred else None} met),"
            f" back after {time.monotonic() - began_s:.1f} s"
        )
        self._await_step(struck)
        replace_killed_nodes(self.deployment)
        time.sleep(self.options.calm_s)

    def _await_stage(self, strike: Strike) -> WatchedJob | None:
        """A job in the strike's stage, or one that trains where none gets there in time."""
        began_s = time.monotonic()
        while True:
            self._top_up()
            active = [job for job in self.jobs if job.active]
            waited_s = time.monotonic() - began_s
            for job in active:
                there = job.stage is strike.stage and (job.trains or strike.stage not in TRAINING)
                if there or (waited_s > self.options.stage_within_s and job.trains):
                    return job
            if waited_s > VICTIM_WITHIN_S:
                return None
            time.sleep(POLL_S)

    def _find(self, fault: Fault, strike: Strike, preferred: WatchedJob | None) -> tuple[Scene, Any]:
        source = random.Random(f"victim {self.seed} {strike.number}")
        deadline_s = time.monotonic() + VICTIM_WITHIN_S
        while time.monotonic() < deadline_s:
            self._top_up()
            active = [job for job in self.jobs if job.active]
            scene = Scene(self.deployment, active, preferred, source, self.options.outage_s, self.options.notice_s)
            victim = fault.find(scene)
            if victim is not None:
                return scene, victim
            time.sleep(POLL_S)
        raise RunFailed(f"strike {strike.number}: no {strike.target} to strike within {VICTIM_WITHIN_S:g} s")

    def _await_step(self, struck: Struck) -> None:
        """Until some job trains again, or has ended: what comes later is the next strike's."""
        fitting = [job for job in self.jobs if job.active and job.trains]
        deadline_s = time.monotonic() + VICTIM_WITHIN_S
        while any(job.active and job.trains and not job.epoch_after(struck.ended_at) for job in fitting):
            if time.monotonic() > deadline_s:
                self.say(f"      no job has made a step for {VICTIM_WITHIN_S:g} s")
                return
            time.sleep(POLL_S)

    # --- after ---

    def _conclude(self) -> Results:
        deadline_s = time.monotonic() + JOB_ENDS_S
        for job in self.jobs:
            if not job.join(max(0.0, deadline_s - time.monotonic())):
                raise RunFailed(f"{job.job_id} is {job.state} {JOB_ENDS_S:g} s after the last strike")
        with self.deployment.gateways[0].client() as client:
            ended = [self._ended(client, job) for job in self.jobs]
            duplicates = self._duplicates(client)
        return Results(tuple(self._felt()), tuple(ended), duplicates, self.options.checkpoint_interval_s)

    def _ended(self, client: Rekindle, watched: WatchedJob) -> Ended:
        job = client.training_jobs.get(watched.job_id)
        sha256 = None
        if job.state is JobState.SUCCEEDED and job.result is not None:
            sha256 = client.models.version(job.result.model_name, job.result.version).weights_sha256
        return Ended(job.id, job.state, sha256, self.references[watched.work])

    def _duplicates(self, client: Rekindle) -> int:
        """Jobs that were not asked for, and versions that a job published beyond its one."""
        asked = {job.job_id for job in self.jobs}
        extra = sum(job.id not in asked for job in client.training_jobs.list())
        for model in client.models.list():
            versions = list(client.models.versions(model.name))
            extra += len(versions) - len({version.job_id for version in versions})
        return extra

    def _felt(self) -> list[Felt]:
        felt: list[Felt] = []
        for number, (strike, struck) in enumerate(self.struck):
            following = self.struck[number + 1][1].began_at if number + 1 < len(self.struck) else None
            window = Window(struck.began_at, struck.ended_at, following, struck.told_at)
            effects = [effect(job.events, window) for job in self.jobs]
            lost_s = sum(
                (other.ended_at - other.began_at).total_seconds() + self.options.checkpoint_interval_s
                for planned, other in self.struck[max(0, number - 1) : number + 1]
                if planned.manner in (Manner.OUTAGE, Manner.FREEZE)
            )
            felt.append(Felt(strike.number, strike.target, strike.manner, counted(effects), lost_s))
        return felt


def log_effects(results: Results) -> list[str]:
    """A line per strike and job that it met."""
    return [f"strike {felt.number} on {felt.target}: {each}" for felt in results.felt for each in felt.effects]
