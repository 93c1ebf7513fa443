"""The metadata client against a service that behaves like EC2's, and worse."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from ray_cluster.spot.imds import Imds, ImdsUnavailable
from tests.servers.fake_imds import TOKEN_PATH, FakeImds, fake_imds

PATH = "/latest/meta-data/instance-id"


@pytest.fixture
def service() -> Iterator[FakeImds]:
    with fake_imds() as imds:
        imds.bodies[PATH] = "i-1"
        yield imds


def test_reads_with_one_token(service: FakeImds) -> None:
    client = Imds(service.url)
    assert [client.get(PATH).body for _ in range(3)] == ["i-1"] * 3
    assert service.asked.count(("PUT", TOKEN_PATH)) == 1


def test_nothing_there_is_an_answer_with_the_services_time(service: FakeImds) -> None:
    service.skew = timedelta(hours=1)
    answer = Imds(service.url).get("/latest/meta-data/spot/instance-action")
    assert answer.body is None
    assert answer.service_time is not None
    assert abs(answer.service_time - service.now()) < timedelta(seconds=30)


def test_renews_its_token_before_it_ends(service: FakeImds) -> None:
    now = 0.0
    client = Imds(service.url, token_ttl_s=6000, clock=lambda: now)
    client.get(PATH)
    now = 5399.0
    client.get(PATH)
    assert len(service.tokens) == 1
    now = 5400.0
    client.get(PATH)
    assert len(service.tokens) == 2


def test_a_forgotten_token_is_renewed_at_once(service: FakeImds) -> None:
    client = Imds(service.url)
    client.get(PATH)
    service.forget_tokens()
    assert client.get(PATH).body == "i-1"


@pytest.mark.parametrize("statuses", [[500], [503], [302], [401, 401], [0]])
@pytest.mark.parametrize("where", [PATH, TOKEN_PATH])
def test_trouble_is_told_and_passes(service: FakeImds, where: str, statuses: list[int]) -> None:
    service.statuses[where] = list(statuses) if where == PATH else statuses[:1]
    service.hang_s = 1.0
    client = Imds(service.url, timeout_s=0.3)
    with pytest.raises(ImdsUnavailable):
        client.get(PATH)
    assert client.get(PATH).body == "i-1"
    assert all(path != "/elsewhere" for _, path in service.asked)


def test_nobody_there() -> None:
    with fake_imds() as gone:
        url = gone.url
    with pytest.raises(ImdsUnavailable):
        Imds(url, timeout_s=1).get(PATH)


def test_never_through_a_proxy(service: FakeImds, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert Imds(service.url).get(PATH).body == "i-1"
