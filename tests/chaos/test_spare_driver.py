"""I1 and I7: a spare driver may be killed at any moment, and no job notices but by its next attempt."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.contracts import names
from services.contracts.errors import NotFound
from services.contracts.spare import SpareDriver
from services.runtime.objects import open_store
from tests.chaos.gateway import Gateway, gateway_on
from tests.cluster.attempts import wait_until
from tests.servers.ray_nodes import RayNodes, Role

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def gateway(cluster: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_on(cluster, tmp_path_factory.mktemp("gateway"), REKINDLE_SPARE_DRIVER="true") as running:
        yield running


def newest(gateway: Gateway) -> SpareDriver | None:
    try:
        return SpareDriver.model_validate_json(open_store(gateway.bucket_uri).get(names.spare_driver()))
    except NotFound:
        return None


def waiting(gateway: Gateway, *, but: str = "") -> tuple[str, psutil.Process]:
    """The spare driver that is ready, and another than `but`: its submission id and its process."""
    found: list[tuple[str, psutil.Process]] = []

    def look() -> bool:
        spare = newest(gateway)
        if spare is None or not spare.ready or spare.given is not None or spare.submission_id == but:
            return False
        for process in gateway.cluster.processes(Role.SPARE_DRIVER):
            with contextlib.suppress(psutil.NoSuchProcess):
                if spare.submission_id in " ".join(process.cmdline()):
                    found.append((spare.submission_id, process))
        return bool(found)

    wait_until(look)
    return found[0]


def weights(gateway: Gateway, model_name: str) -> str:
    version = gateway.client.get(f"/v1/models/{model_name}/versions/1").raise_for_status().json()
    return version["weights_sha256"]


def test_one_that_is_killed_while_it_waits_is_replaced(gateway: Gateway) -> None:
    spare_id, process = waiting(gateway)
    process.kill()
    waiting(gateway, but=spare_id)


def test_a_job_whose_spare_driver_dies_before_it_begins_or_at_work_ends_with_the_same_bits(
    gateway: Gateway, images: Path
) -> None:
    spare_id, _ = waiting(gateway)
    undisturbed = gateway.end(gateway.accept(images, "undisturbed"))
    assert (undisturbed["state"], undisturbed["attempt"]) == ("succeeded", 1)
    assert undisturbed["submission_id"] == spare_id

    # It was given the attempt and has not looked since.
    spare_id, process = waiting(gateway, but=spare_id)
    process.send_signal(signal.SIGSTOP)
    job_id = gateway.accept(images, "unbegun", max_attempts=1)
    wait_until(lambda: (spare := newest(gateway)) is not None and spare.given is not None)
    process.kill()
    struck = gateway.end(job_id)
    assert (struck["state"], struck["attempt"]) == ("succeeded", 2), struck
    assert weights(gateway, "unbegun") == weights(gateway, "undisturbed")

    spare_id, process = waiting(gateway, but=spare_id)
    job_id = gateway.accept(images, "begun", max_attempts=1)
    wait_until(lambda: job_id in " ".join(process.cmdline()))
    process.kill()
    struck = gateway.end(job_id)
    assert (struck["state"], struck["attempt"]) == ("succeeded", 2), struck
    assert weights(gateway, "begun") == weights(gateway, "undisturbed")
