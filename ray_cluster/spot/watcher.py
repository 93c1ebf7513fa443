"""Watches for the machine's spot notice and drains its Ray node: `python -m ray_cluster.spot.watcher`.

One runs on every spot node, beside Ray and not in it. It asks every few seconds, and as long as there is a notice it
says so to the head each time: what a restarted head forgot, it hears again. It ends on SIGTERM only.
"""

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from ray_cluster.spot.imds import ENDPOINT, Answer, Imds, ImdsUnavailable
from ray_cluster.spot.notices import (
    INSTANCE_ACTION_PATH,
    REBALANCE_PATH,
    Notice,
    NoticeUnreadable,
    drain_deadline,
    read_instance_action,
    read_rebalance,
)
from ray_cluster.spot.ray_node import DrainFailed, NodeNotFound, RayNode, Wanted, drain, find_node
from services.contracts.base import utc_now


class WatcherSettings(BaseSettings):
    """`REKINDLE_SPOT_*` of the environment; each can be given as a flag as well."""

    model_config = SettingsConfigDict(env_prefix="REKINDLE_SPOT_", frozen=True, extra="ignore")

    imds_url: str = Field(default=ENDPOINT, description="Where the instance metadata service is.")
    poll_s: float = Field(default=5.0, gt=0, description="Seconds between two looks; AWS recommends 5.")
    margin_s: float = Field(default=10.0, ge=0, description="How long before the end the node should be empty.")
    rebalance: bool = Field(default=False, description="Leave at a rebalance recommendation already.")
    timeout_s: float = Field(default=2.0, gt=0, description="How long the metadata service may take.")
    node_id: str | None = Field(default=None, description="Ray's id of the node; unset: this machine's.")
    node_ip: str | None = Field(default=None, description="The node's address in Ray; unset: this machine's.")
    ray_address: str | None = Field(default=None, description="Of the GCS; unset: that of this machine's node.")


class Metadata(Protocol):
    """What of `Imds` is used."""

    def get(self, path: str) -> Answer: ...


Log = Callable[..., None]
"""`log(event, **values)`."""


class Watcher:
    """One look after the other. Effects come in by arguments."""

    def __init__(
        self,
        metadata: Metadata,
        find: Callable[[], RayNode],
        drain_node: Callable[[RayNode, str, datetime | None], None],
        log: Log,
        *,
        margin_s: float,
        rebalance: bool,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """`find` and `drain_node` raise what `ray_node` raises."""
        self._metadata = metadata
        self._find = find
        self._drain = drain_node
        self._log = log
        self._margin_s = margin_s
        self._rebalance = rebalance
        self._now = now
        self._notice: Notice | None = None
        self._deadline: datetime | None = None
        self._node: RayNode | None = None
        self._accepted = False
        self._troubles: dict[str, str] = {}
        """Logged already."""

    def look(self) -> None:
        """Asks once, and drains if there is a notice. What goes wrong is logged, and tried again at the next look."""
        try:
            self._learn()
        except (ImdsUnavailable, NoticeUnreadable) as error:
            self._log_trouble("spot.metadata_failed", error)
        # A notice stands, whether or not the service answered this time.
        if self._notice is not None:
            self._drain_for(self._notice)

    def _learn(self) -> None:
        answer = self._metadata.get(INSTANCE_ACTION_PATH)
        notice = read_instance_action(answer.body) if answer.body is not None else None
        if notice is None and self._rebalance and self._notice is None:
            advice = self._metadata.get(REBALANCE_PATH)
            notice = read_rebalance(advice.body) if advice.body is not None else None
        self._troubles.pop("spot.metadata_failed", None)
        if notice is not None and notice != self._notice:
            self._notice, self._accepted = notice, False
            # Once per notice: repeated, the deadline must stay the same.
            self._deadline = drain_deadline(notice, answer.service_time, self._now(), self._margin_s)
            self._log("spot.notice", action=notice.action, at=_iso(notice.at), deadline=_iso(self._deadline))

    def _drain_for(self, notice: Notice) -> None:
        try:
            self._node = self._node or self._find()
            self._drain(self._node, notice.reason, self._deadline)
        except (NodeNotFound, DrainFailed) as error:
            self._node = None  # Ray may have been restarted on this machine, with another id
            if not (self._accepted and isinstance(error, NodeNotFound)):  # drained, it ends when it is empty
                self._log_trouble("spot.drain_failed", error)
            return
        self._troubles.pop("spot.drain_failed", None)
        if not self._accepted:
            self._accepted = True
            self._log("spot.draining", node_id=self._node.node_id, deadline=_iso(self._deadline))

    def _log_trouble(self, event: str, error: Exception) -> None:
        if self._troubles.get(event) != str(error):
            self._troubles[event] = str(error)
            self._log(event, error=type(error).__name__, reason=str(error)[:500])


def _iso(when: datetime | None) -> str | None:
    return when.isoformat(timespec="milliseconds") if when else None


def log_line(event: str, **values: object) -> None:
    """One JSON object on a line of stdout."""
    print(json.dumps({"event": event, "timestamp": _iso(utc_now()), **values}), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Watches until SIGTERM or Ctrl-C."""
    settings = _settings(argv)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    wanted = Wanted(settings.ray_address, settings.node_id, settings.node_ip)
    metadata = Imds(settings.imds_url, timeout_s=settings.timeout_s)
    watcher = Watcher(
        metadata, lambda: find_node(wanted), drain, log_line, margin_s=settings.margin_s, rebalance=settings.rebalance
    )
    log_line("spot.watching", imds_url=settings.imds_url, poll_s=settings.poll_s)
    while not stopping.is_set():
        started_at = time.monotonic()
        watcher.look()
        stopping.wait(max(0.0, settings.poll_s - (time.monotonic() - started_at)))
    log_line("spot.stopped")


def _settings(argv: Sequence[str] | None) -> WatcherSettings:
    parser = argparse.ArgumentParser(
        prog="python -m ray_cluster.spot.watcher", description=(__doc__ or "").split(":")[0]
    )
    for name, field in WatcherSettings.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"{field.description} (REKINDLE_SPOT_{name.upper()})")
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    return WatcherSettings.model_validate({**WatcherSettings().model_dump(), **given})


if __name__ == "__main__":
    main(sys.argv[1:])
