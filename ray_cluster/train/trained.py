"""What a job trained, as its last stages hand it on."""

from dataclasses import dataclass

from ray_cluster.train.checkpoints import Checkpoint
from ray_cluster.vision.network_tails import TrainedNetwork
from ray_cluster.vision.tails import Tail
from services.contracts.models import EngineChoice, FitReport, TrunkManifest


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The fitted head, or the network that fine-tuning made of it."""

    checkpoint: Checkpoint
    report: FitReport
    """The head's, also where fine-tuning went on from it."""
    pooled: TrunkManifest
    """What the head was fitted on."""
    trunk: TrunkManifest
    """What the tail is on."""
    tail: Tail | TrainedNetwork
    engine: EngineChoice
    """Runs both trunks."""
