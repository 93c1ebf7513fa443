"""What the fit and fine-tuning have in common: a loop of steps over explicit state that a trainer runs."""

from typing import Protocol, TypeVar

from ray_cluster.train.checkpoints import Checkpoint, Snapshot
from ray_cluster.train.shards import ShardResult, ShardTask
from services.contracts.jobs import EpochMetrics
from services.contracts.models import Fingerprint


class LoopState(Protocol):
    """Everything that the rest of a loop depends on. Immutable."""

    @property
    def step(self) -> int:
        """Grows with every step, and over the loops of a job."""
        ...

    @property
    def epoch(self) -> int:
        """Epochs done."""
        ...

    @property
    def done(self) -> bool: ...

    @property
    def history(self) -> tuple[EpochMetrics, ...]:
        """Of each epoch done."""
        ...


State = TypeVar("State", bound=LoopState)


class TrainingLoop(Protocol[State]):
    """Trains something. The same in every trainer of a job; the leader advances it, the others compute shards."""

    @property
    def fingerprint(self) -> Fingerprint:
        """What its bits depend on here."""
        ...

    def compute(self, task: ShardTask, shard: int) -> ShardResult:
        """A shard's share of a sum. Pure."""
        ...

    def warm_up(self) -> None:
        """Does once what takes longer the first time. Changes nothing."""
        ...

    def begin(self) -> State:
        """The state before the first step."""
        ...

    def advance(self, state: State) -> State:
        """One step, after which training may stop. Deterministic: equal states give equal bits."""
        ...

    def snapshot(self, state: State) -> Snapshot:
        """The state as a checkpoint."""
        ...

    def restore(self, checkpoint: Checkpoint) -> State | None:
        """The state of a checkpoint; None for one of the loop before. Raises `CorruptObject`."""
        ...

    def finish(self, state: State) -> Snapshot:
        """The checkpoint of the state after the last step, with the result."""
        ...

    def close(self) -> None:
        """Gives back what the process would keep of it: it goes on to other jobs."""
        ...
