"""The watcher's looks, against the metadata service and a head that fails when the test says so."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from ray_cluster.spot.imds import Imds
from ray_cluster.spot.notices import INSTANCE_ACTION_PATH
from ray_cluster.spot.ray_node import DrainFailed, NodeNotFound, RayNode
from ray_cluster.spot.watcher import Watcher, WatcherSettings
from tests.servers.fake_imds import FakeImds, fake_imds

NODE = RayNode("ab" * 28, "127.0.0.2:6379", "127.0.0.3")


class Rig:
    """A watcher whose node and head are lists."""

    def __init__(self, imds: FakeImds, *, rebalance: bool = False) -> None:
        self.imds = imds
        self.failures: list[Exception] = []
        self.drains: list[tuple[RayNode, str, datetime | None]] = []
        self.events: list[str] = []
        self.node: RayNode | None = NODE
        client = Imds(imds.url, timeout_s=0.3)
        self.watcher = Watcher(client, self._find, self._drain, self._log, margin_s=10, rebalance=rebalance)

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.watcher.look()

    def _find(self) -> RayNode:
        if self.node is None:
            raise NodeNotFound("no Ray node")
        return self.node

    def _drain(self, node: RayNode, reason: str, deadline: datetime | None) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.drains.append((node, reason, deadline))

    def _log(self, event: str, **_values: object) -> None:
        self.events.append(event)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with fake_imds() as imds:
        yield Rig(imds)


def test_without_a_notice_nothing_happens(rig: Rig) -> None:
    rig.look(3)
    assert (rig.drains, rig.events) == ([], [])


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_a_notice_drains_with_the_deadline(rig: Rig, action: str) -> None:
    at = rig.imds.notify(120, action)
    rig.look()
    ((node, reason, deadline),) = rig.drains
    assert node == NODE
    assert action in reason
    assert deadline is not None
    assert timedelta(seconds=5) < at - deadline < timedelta(seconds=15)
    assert rig.events == ["spot.notice", "spot.draining"]


def test_it_is_said_again_with_the_same_deadline_and_logged_once(rig: Rig) -> None:
    rig.imds.notify(120)
    rig.look(3)
    assert len(rig.drains) == 3
    assert len(set(rig.drains)) == 1
    assert rig.events == ["spot.notice", "spot.draining"]


def test_it_goes_on_until_the_head_accepts(rig: Rig) -> None:
    rig.imds.notify(120)
    rig.failures = [DrainFailed("no answer"), DrainFailed("no answer"), DrainFailed("rejected")]
    rig.look(4)
    assert len(rig.drains) == 1
    assert rig.events == ["spot.notice", "spot.drain_failed", "spot.drain_failed", "spot.draining"]


def test_a_notice_stands_while_the_service_is_away(rig: Rig) -> None:
    rig.imds.notify(120)
    rig.failures = [DrainFailed("no answer")]
    rig.look()
    rig.imds.statuses[INSTANCE_ACTION_PATH] = [500, 500]
    rig.look(2)
    assert len(rig.drains) == 2
    assert rig.events.count("spot.metadata_failed") == 1


def test_it_finds_the_node_that_ray_restarted(rig: Rig) -> None:
    rig.imds.notify(120)
    rig.node = None
    rig.look()
    rig.node = RayNode("cd" * 28, NODE.address, NODE.ip)
    rig.look()
    assert [node for node, _, _ in rig.drains] == [rig.node]


def test_a_drained_node_that_ended_is_no_trouble(rig: Rig) -> None:
    rig.imds.notify(120)
    rig.look()
    rig.failures, rig.node = [DrainFailed("the head restarts")], None
    rig.look(3)
    assert rig.events == ["spot.notice", "spot.draining", "spot.drain_failed"]


def test_what_cannot_be_read_is_told_and_passes(rig: Rig) -> None:
    rig.imds.bodies[INSTANCE_ACTION_PATH] = "<html>"
    rig.look(2)
    assert rig.events == ["spot.metadata_failed"]
    rig.imds.notify(60)
    rig.look()
    assert len(rig.drains) == 1


def test_rebalance_only_where_wanted(rig: Rig) -> None:
    rig.imds.recommend_rebalance()
    rig.look()
    assert rig.drains == []
    eager = Rig(rig.imds, rebalance=True)
    eager.look()
    assert [deadline for _, _, deadline in eager.drains] == [None]
    rig.imds.notify(120)
    eager.look()
    assert eager.drains[-1][2] is not None


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REKINDLE_SPOT_POLL_S", "0.5")
    monkeypatch.setenv("REKINDLE_SPOT_REBALANCE", "true")
    settings = WatcherSettings()
    assert (settings.poll_s, settings.rebalance, settings.imds_url) == (0.5, True, "http://169.254.169.254")
