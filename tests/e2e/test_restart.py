"""What survives the death of everything at once, and what is left behind by an orderly end: nothing."""

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest

from services.client import Rekindle
from services.contracts.backbones import BackboneName
from services.contracts.jobs import JobEventType, JobState, Stage, TrainingJobSpec
from services.contracts.predictions import ImagePredicted
from services.local.background import BackgroundStack
from services.local.home import StackHome
from tests.servers.local_stack import Orphans, clean_environment, run_command

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@dataclass(slots=True)
class Stacks:
    """Those that a test started; a test that fails leaves none to the next."""

    started: list[BackgroundStack] = field(default_factory=list[BackgroundStack])

    def start(self, home: Path) -> tuple[BackgroundStack, str]:
        background = BackgroundStack(home, clean_environment())
        self.started.append(background)
        background.start()
        return background, background.wait_until_ready().url


@pytest.fixture
def stacks() -> Iterator[Stacks]:
    begun = Stacks()
    yield begun
    for background in begun.started:
        background.stop()


def test_everything_dies_in_the_middle_of_a_job_and_the_job_finishes_after_the_next_start(
    orphans: Orphans, stacks: Stacks, tmp_path: Path, drawings: Path
) -> None:
    home = tmp_path / "home"
    background, url = stacks.start(home)
    with Rekindle(url) as client:
        dataset = client.datasets.create_from_prefix("objects", drawings.as_uri())
        job = client.training_jobs.create(TrainingJobSpec(dataset_id=dataset.id, backbone=BackboneName.REKINDLE_TINY))
        for event in client.training_jobs.events(job.id):
            assert not event.state.is_terminal, event
            if event.type is JobEventType.STAGE and event.data["stage"] == Stage.FEATURES:
                break
    background.stop(signal.SIGKILL)

    second, url = stacks.start(home)
    refused = run_command("up", environment={"REKINDLE_HOME": str(home), "REKINDLE_PORT": "0"})
    assert refused.returncode == 1
    assert f"already runs in {home}" in refused.stderr
    with Rekindle(url) as client:
        finished = client.training_jobs.wait(job.id)
        assert finished.state is JobState.SUCCEEDED
        assert finished.attempt > 1, "the first attempt died with the stack"
        image = next((drawings / "test").glob("*/*.jpg"))
        before = client.predict("objects", image).results[0]
    assert second.stop() == 0
    assert orphans.left() == []
    assert StackHome(home).read_record() is None
    assert not StackHome(home).ray_temp.exists()

    # A third start serves the model, with no job to run.
    third, url = stacks.start(home)
    with Rekindle(url) as client:
        assert [one.state for one in client.training_jobs.list()] == [JobState.SUCCEEDED]
        after = client.predict("objects", image).results[0]
    assert isinstance(before, ImagePredicted)
    assert after == before
    assert third.stop(signal.SIGTERM) == 0
    assert orphans.left() == []


def test_a_gateway_and_a_ray_head_that_die_are_started_again(
    orphans: Orphans, stacks: Stacks, tmp_path: Path, drawings: Path
) -> None:
    background, url = stacks.start(tmp_path / "home")
    record = StackHome(tmp_path / "home").read_record()
    assert record is not None
    with Rekindle(url) as client:
        client.datasets.create_from_prefix("objects", drawings.as_uri())
        for leader, _ in record.sessions:
            psutil.Process(leader).kill()
        # The client waits through it.
        assert [dataset.name for dataset in client.datasets.list()] == ["objects"]
    while httpx2.get(f"{url}/readyz", timeout=10).json()["unavailable"].get("ray"):
        time.sleep(0.2)
    assert background.stop() == 0
    said = background.log.read_text()
    assert "the gateway ended (killed by SIGKILL)" in said
    assert "Ray ended (killed by SIGKILL)" in said
    assert orphans.left() == []
