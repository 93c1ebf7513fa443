"""Keeps Serve's applications those that the published versions, and those that jobs are training, need."""

import time
from dataclasses import dataclass, field

import structlog

from services.contracts.ids import TrunkId
from services.training.context import Training
from services.training.jobs.queries import list_unfinished, trunks_of
from services.training.models import queries
from services.training.ray_api import ServeApplication
from services.training.reconciler.serve_applications import ServeTarget, desired_config, differs

REDEPLOY_FAILED_S = 60.0
"""How long a failed deployment is left alone before it is sent again: Serve does not repeat a build by itself."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True)
class ServeKeeper:
    """Looks and deploys. Remembers only what spares the cluster needless calls."""

    training: Training
    redeploy_at_s: float = 0.0
    deployed: set[TrunkId] = field(default_factory=set[TrunkId])

    async def look(self) -> None:
        """Brings Serve in line with the published versions and with what is about to be published.

        Raises `ClusterUnavailable` and `DatabaseUnavailable`; the next look tries again.
        """
        async with self.training.database.session() as session:
            # A job's trunk is served while the job still trains: starting that takes as long as training.
            unfinished = trunks_of(await list_unfinished(session))
            trunks = unfinished.union(await queries.list_trunks(session))
        if not trunks and not self.deployed:
            return  # asking would start parts of Serve's machinery for nothing
        settings = self.training.settings
        target = ServeTarget(
            bucket_uri=self.training.store.uri,
            http_host=settings.serve_host,
            http_port=settings.serve_port,
            scale=settings.replica_scale(),
        )
        desired = desired_config(trunks, target)
        observed = await self.training.ray.serve_applications()
        if differs(desired, observed) or self._again(observed):
            log.info("serve.deploy", trunks=len(trunks))
            await self.training.ray.deploy(desired)
            self.redeploy_at_s = time.monotonic() + REDEPLOY_FAILED_S
        self.deployed = trunks

    def _again(self, observed: dict[str, ServeApplication]) -> bool:
        failed = {name: app.message for name, app in observed.items() if app.status == "DEPLOY_FAILED"}
        if not failed or time.monotonic() < self.redeploy_at_s:
            return False
        for name, message in failed.items():
            log.warning("serve.deploy_failed", application=name, reason=message[-2000:])
        return True
