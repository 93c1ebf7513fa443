"""What a replica tells Ray of its work; each node exports it on its own `/metrics`, every name with `ray_` before it.

Ray Serve adds who says it: `deployment`, `application` and `replica`.
"""

from ray.serve.metrics import Gauge, Histogram

BATCH_IMAGES = "rekindle_replica_batch_images"
BATCH_DURATION = "rekindle_replica_batch_duration_seconds"
WAITING_IMAGES = "rekindle_replica_waiting_images"
HEADS = "rekindle_replica_heads"
HEAD_BYTES = "rekindle_replica_head_bytes"
NAMES = (BATCH_IMAGES, BATCH_DURATION, WAITING_IMAGES, HEADS, HEAD_BYTES)
_SIZES = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0]
_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]


class ReplicaMeasures:
    """One per replica, in its process. Safe to call from any thread."""

    def __init__(self) -> None:
        self._images = Histogram(BATCH_IMAGES, "Images that a thread took at a time.", _SIZES)
        self._duration = Histogram(BATCH_DURATION, "Time for decoding, trunk and tails of a batch.", _SECONDS)
        self._waiting = Gauge(WAITING_IMAGES, "Images that wait for a thread.")
        self._heads = Gauge(HEADS, "Heads in memory.")
        self._head_bytes = Gauge(HEAD_BYTES, "Memory that they take.")

    def count_batch(self, images: int, duration_s: float) -> None:
        """A batch was answered."""
        self._images.observe(images)
        self._duration.observe(duration_s)

    def show(self, *, waiting: int, heads: int, head_bytes: int) -> None:
        """How the replica stands."""
        self._waiting.set(waiting)
        self._heads.set(heads)
        self._head_bytes.set(head_bytes)
