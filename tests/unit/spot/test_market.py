"""How a machine was bought, from a metadata service that behaves like EC2's."""

from collections.abc import Iterator

import pytest

from ray_cluster.spot.imds import Imds, ImdsUnavailable
from ray_cluster.spot.market import INSTANCE_TYPE_PATH, LIFE_CYCLE_PATH, ask_until_it_says, main, market_type
from tests.servers.fake_imds import FakeImds, fake_imds


@pytest.fixture
def service() -> Iterator[FakeImds]:
    with fake_imds() as imds:
        yield imds


@pytest.mark.parametrize(
    ("said", "market"), [("spot", "spot"), ("on-demand", "on-demand"), ("scheduled", "on-demand"), ("spot\n", "spot")]
)
def test_the_label_follows_from_the_life_cycle(service: FakeImds, said: str, market: str) -> None:
    service.bodies[LIFE_CYCLE_PATH] = said
    assert market_type(Imds(service.url)) == market


def test_a_service_that_comes_up_late_is_asked_again(service: FakeImds) -> None:
    service.bodies[LIFE_CYCLE_PATH] = "spot"
    service.statuses[LIFE_CYCLE_PATH] = [503, 503]
    waited: list[float] = []
    assert ask_until_it_says(Imds(service.url), wait=waited.append) == "spot"
    assert len(waited) == 2


def test_nothing_is_guessed(service: FakeImds) -> None:
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    with pytest.raises(ImdsUnavailable):
        ask_until_it_says(Imds(service.url), within_s=30, clock=lambda: now, wait=wait)
    assert 28 <= now <= 30


def test_as_a_command(service: FakeImds, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    service.bodies[LIFE_CYCLE_PATH] = "spot"
    monkeypatch.setenv("REKINDLE_SPOT_IMDS_URL", service.url)
    assert main() == 0
    assert capsys.readouterr().out == "spot\n"
    assert main(["--environment"]) == 0
    assert capsys.readouterr().out == "RAY_NODE_MARKET_TYPE=spot\n"
    service.bodies[INSTANCE_TYPE_PATH] = "g4dn.xlarge"
    assert main(["--environment"]) == 0
    assert capsys.readouterr().out == "RAY_NODE_MARKET_TYPE=spot REKINDLE_INSTANCE_TYPE=g4dn.xlarge\n"
