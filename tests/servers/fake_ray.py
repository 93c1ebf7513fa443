"""A Ray cluster as the gateway sees it, without Ray: what `RayApi` promises, kept in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from services.contracts.errors import ClusterUnavailable
from services.training.ray_api import RayJob, RayStatus, ServeApplication, Submission


@dataclass
class FakeRay:
    """Jobs stay in the state that a test puts them in."""

    reachable: bool = True
    loses_submissions: bool = False
    """The answer to a submission gets lost, though the cluster has it."""
    jobs: dict[str, RayJob] = field(default_factory=dict)
    submissions: list[Submission] = field(default_factory=list)
    """Those that were accepted, in order."""
    log_texts: dict[str, str] = field(default_factory=dict)
    applications: dict[str, ServeApplication] = field(default_factory=dict)
    deployments: list[dict[str, JsonValue]] = field(default_factory=list)
    unseen: dict[str, RayJob] = field(default_factory=dict)
    """What became of jobs while nobody looks after them; shown from the next submission on."""

    async def submit(self, submission: Submission) -> None:
        self._check()
        self.jobs.update(self.unseen)
        self.unseen.clear()
        if submission.submission_id not in self.jobs:
            self.jobs[submission.submission_id] = RayJob(RayStatus.PENDING, "", None)
            self.submissions.append(submission)
        if self.loses_submissions:
            raise ClusterUnavailable("the answer was lost")

    async def job(self, submission_id: str) -> RayJob | None:
        self._check()
        return self.jobs.get(submission_id)

    async def stop(self, submission_id: str) -> None:
        self._check()
        job = self.jobs.get(submission_id)
        if job is not None and job.status in (RayStatus.PENDING, RayStatus.RUNNING):
            self.jobs[submission_id] = replace(job, status=RayStatus.STOPPED)

    async def logs(self, submission_id: str) -> str | None:
        self._check()
        return self.log_texts.get(submission_id, "") if submission_id in self.jobs else None

    async def serve_applications(self) -> dict[str, ServeApplication]:
        self._check()
        return dict(self.applications)

    async def deploy(self, config: Mapping[str, JsonValue]) -> None:
        self._check()
        self.deployments.append(dict(config))
        wanted = config["applications"]
        assert isinstance(wanted, list)
        self.applications = {}
        for each in wanted:
            assert isinstance(each, dict)
            self.applications[str(each["name"])] = ServeApplication("RUNNING", "", each)

    def set(self, submission_id: str, status: RayStatus, message: str = "", error_type: str | None = None) -> None:
        """The job's state from now on."""
        self.jobs[submission_id] = RayJob(status, message, error_type)

    def restart(self) -> None:
        """A new head that knows nothing of before."""
        self.jobs.clear()
        self.applications.clear()

    def fail_unseen(self, submission_id: str) -> None:
        """The head is restarted from its disk. The job's driver is gone with the old one, and nobody notices."""
        self.unseen[submission_id] = RayJob(RayStatus.FAILED, "Job supervisor actor died", "JOB_SUPERVISOR_ACTOR_DIED")

    def _check(self) -> None:
        if not self.reachable:
            raise ClusterUnavailable("the Ray cluster cannot be reached: refused")
