"""A wait for machines is told when it is one, when it changes and when it is over; on-demand nodes count when due."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ray_cluster.train.capacity import GRACE, CapacityWatch
from ray_cluster.train.cluster_view import ClusterUnknown
from ray_cluster.train.machines import MARKET_LABEL, ClusterView, NodeView, Unplaced
from ray_cluster.train.reporter import Reporter
from services.contracts import names
from services.contracts.ids import new_job_id
from services.contracts.jobs import CapacityWait, JobEventType, ProgressRecord, Stage
from services.contracts.resources import Resources
from services.runtime.objects import open_store

START = datetime(2026, 11, 1, 12, tzinfo=UTC)
CPUS = 0.9
SPOT = NodeView("aa", {MARKET_LABEL: "spot"}, total_cpus=4, free_cpus=4)
ON_DEMAND = NodeView("bb", {MARKET_LABEL: "on-demand"}, total_cpus=4, free_cpus=4)


class Story:
    """A watch over a cluster that a test changes, and what it reported."""

    def __init__(self, folder: Path, resources: Resources) -> None:
        self.now = START
        self.view: ClusterView | None = ClusterView([])
        self._store = open_store(folder.as_uri())
        self._job = new_job_id()
        reporter = Reporter(self._store, self._job, 1)
        self.watch = CapacityWatch(resources, reporter, look=self._look, clock=lambda: self.now)

    def _look(self) -> ClusterView:
        if self.view is None:
            raise ClusterUnknown("the head is away")
        return self.view

    def after(self, wait: timedelta, *, runs: bool = False) -> bool:
        self.now += wait
        return self.watch.look(Stage.FEATURES, CPUS, runs=lambda: runs)

    @property
    def told(self) -> list[CapacityWait]:
        keys = [info.key for info in self._store.list(names.attempt_progress_prefix(self._job, 1))]
        records = [ProgressRecord.model_validate_json(self._store.get(key)) for key in keys]
        assert {record.type for record in records} <= {JobEventType.CAPACITY}
        return [CapacityWait.model_validate(record.data) for record in records]


Begin = Callable[..., Story]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    return lambda **resources: Story(tmp_path, Resources.model_validate(resources))


def test_a_short_wait_is_not_told(begin: Begin) -> None:
    story = begin()
    story.after(timedelta(0))
    story.after(GRACE / 2)
    story.view = ClusterView([SPOT])
    story.after(GRACE)
    assert story.told == []


def test_a_wait_is_told_once_and_so_is_its_end(begin: Begin) -> None:
    story = begin(market="spot")
    story.view = ClusterView([ON_DEMAND])
    for _ in range(4):
        story.after(GRACE)
    story.view = ClusterView([ON_DEMAND, SPOT])
    story.after(GRACE)
    story.after(GRACE)
    began, ended = story.told
    assert began == CapacityWait(
        asked="0.9 CPU on a spot node",
        since=START + GRACE,
        message="no living node has the label ray.io/market-type=spot; there are on-demand",
        on_demand_at=None,
    )
    assert ended == began.model_copy(update={"over": True})


def test_what_ray_says_anew_is_told_with_the_same_beginning(begin: Begin) -> None:
    story = begin()
    story.after(timedelta(0))
    story.after(GRACE)
    story.view = ClusterView([], starting=["spot"])
    story.after(GRACE)
    assert [(each.since, each.message) for each in story.told] == [
        (START, "no living node takes work"),
        (START, "no living node takes work; starting: spot"),
    ]


def test_work_that_gets_done_ends_a_wait(begin: Begin) -> None:
    story = begin()
    story.after(timedelta(0))
    story.after(GRACE)
    story.watch.placed(Stage.FEATURES)
    story.watch.placed(Stage.FEATURES)
    assert [each.over for each in story.told] == [False, True]


def test_a_busy_cluster_is_a_wait_unless_it_is_busy_with_our_own_work(begin: Begin) -> None:
    story = begin()
    story.view = ClusterView([NodeView("aa", {}, total_cpus=4, free_cpus=0.4)], [Unplaced(CPUS, {}, 3)])
    for _ in range(3):
        story.after(GRACE, runs=True)
    assert story.told == []
    for _ in range(2):
        story.after(GRACE, runs=False)
    assert [each.message for each in story.told] == ["the one node that fits is busy with other work"]


def test_a_spot_job_takes_on_demand_nodes_when_its_patience_ends(begin: Begin) -> None:
    story = begin(market="spot", on_demand_after_s=30)
    story.view = ClusterView([ON_DEMAND])
    assert not story.after(timedelta(0))
    assert not story.after(timedelta(seconds=29))
    assert story.told[0].on_demand_at == START + timedelta(seconds=30)
    assert not story.watch.place.suits(ON_DEMAND.labels)
    assert story.after(timedelta(seconds=1))
    assert story.watch.place.suits(ON_DEMAND.labels)
    assert not story.after(timedelta(seconds=1))
    assert [each.over for each in story.told] == [False, True]


def test_a_spot_job_whose_patience_ended_says_what_it_asks_for_now(begin: Begin) -> None:
    story = begin(market="spot", on_demand_after_s=30)
    story.after(timedelta(0))
    assert story.after(timedelta(seconds=30))
    (told,) = story.told
    assert (told.asked, told.on_demand_at) == ("0.9 CPU on a spot or on-demand node", None)


def test_patience_begins_anew_with_each_wait(begin: Begin) -> None:
    story = begin(market="spot", on_demand_after_s=30)
    story.after(timedelta(0))
    story.after(timedelta(seconds=20))
    story.view = ClusterView([SPOT])
    story.after(timedelta(seconds=1))
    story.view = ClusterView([ON_DEMAND])
    story.after(timedelta(seconds=1))
    assert not story.after(timedelta(seconds=20))
    assert not story.watch.place.on_demand_counts


@pytest.mark.parametrize("resources", [{"market": "spot"}, {"market": "on_demand"}, {}])
def test_without_a_term_nothing_else_ever_counts(begin: Begin, resources: dict[str, object]) -> None:
    story = begin(**resources)
    assert not any(story.after(timedelta(hours=1)) for _ in range(3))


def test_a_head_that_is_away_begins_and_ends_no_wait(begin: Begin) -> None:
    story = begin()
    story.view = None
    story.after(timedelta(0))
    story.after(GRACE * 2)
    assert story.told == []
    story.view = ClusterView([])
    story.after(GRACE)
    story.after(GRACE)
    story.view = None
    story.after(GRACE)
    assert [each.over for each in story.told] == [False]


def test_the_sentence_says_all_of_it() -> None:
    wait = CapacityWait(
        asked="0.9 CPU on a spot node",
        since=START,
        message="no living node takes work",
        on_demand_at=START + timedelta(minutes=10),
    )
    assert wait.sentence == (
        "Waits for a machine since 12:00:00 UTC: asked for 0.9 CPU on a spot node; Ray says: no living node takes "
        "work; on-demand machines count from 12:10:00 UTC on."
    )


def test_the_nodes_that_could_take_work(tmp_path: Path) -> None:
    story = Story(tmp_path, Resources(market="spot"))
    story.view = ClusterView([ON_DEMAND, SPOT, replace(SPOT, node_id="cc", draining=True)])
    assert story.watch.nodes(CPUS) == ["aa"]
    story.view = None
    assert story.watch.nodes(CPUS) == []
