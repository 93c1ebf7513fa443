"""Which pools of machines to ask, in which order, and which to leave alone for a while. Pure: the clock comes in.

A pool is what EC2 has or has not: a market, a type of machine and a zone, here by its subnet.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

COOL_OFF_S = 180.0

CAPACITY_CODES = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "InsufficientCapacity",
        "InsufficientFreeAddressesInSubnet",
        "SpotMaxPriceTooLow",
        "Unsupported",  # the zone does not have the type
        "MaxSpotInstanceCountExceeded",
        "VcpuLimitExceeded",
        "InstanceLimitExceeded",
    }
)
"""What EC2 says when this pool has nothing for us now and another may. Everything else another pool would say too."""


class Market(StrEnum):
    """The values of Ray's label `ray.io/market-type`."""

    SPOT = "spot"
    ON_DEMAND = "on-demand"


@dataclass(frozen=True, slots=True)
class Offer:
    """A kind of machine that a node type takes, in any zone."""

    market: Market
    instance_type: str


@dataclass(frozen=True, slots=True)
class Pool:
    """Where one machine can come from."""

    market: Market
    instance_type: str
    subnet_id: str

    def __str__(self) -> str:
        return f"{self.market} {self.instance_type} in {self.subnet_id}"


def read_offers(listed: Sequence[Mapping[str, Any]]) -> list[Offer]:
    """The offers of a node type, as they stand in the cluster's YAML: `[{"Market": …, "InstanceType": …}]`.

    Raises `ValueError` for an unknown market, a missing field or an empty list.
    """
    if not listed:
        raise ValueError("a node type with no offers could never get a machine")
    try:
        return [Offer(Market(each["Market"]), str(each["InstanceType"])) for each in listed]
    except KeyError as error:
        raise ValueError(f"an offer needs {error.args[0]!r}: {listed!r}") from error


def in_order(offers: Iterable[Offer], subnet_ids: Sequence[str]) -> list[Pool]:
    """Spot before on-demand; in each, zone after zone; in each, the types in the order given."""
    listed = list(offers)
    return [
        Pool(market, offer.instance_type, subnet_id)
        for market in Market
        for subnet_id in subnet_ids
        for offer in listed
        if offer.market == market
    ]


class CoolOff:
    """Remembers which pools had nothing, and until when they are not asked again. Not for several threads."""

    def __init__(self, cool_off_s: float = COOL_OFF_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._cool_off_s = cool_off_s
        self._clock = clock
        self._closed: dict[Pool, tuple[float, str]] = {}

    def close(self, pool: Pool, why: str) -> None:
        """The pool had nothing, for the reason that EC2 gave."""
        self._closed[pool] = (self._clock() + self._cool_off_s, why)

    def why_closed(self, pool: Pool) -> str | None:
        """The reason that EC2 gave; None for a pool that may be asked."""
        until, why = self._closed.get(pool, (0.0, ""))
        return why if until > self._clock() else None

    def opens_in_s(self, pools: Iterable[Pool]) -> float:
        """Seconds until the first of the pools may be asked again; 0 where one may be asked now, or there is none."""
        now = self._clock()
        return max(0.0, min((self._closed.get(pool, (now, ""))[0] - now for pool in pools), default=0.0))


def describe(reasons: Mapping[Pool, str]) -> str:
    """What each pool said, shortest first words: `InsufficientInstanceCapacity: spot g5.xlarge in subnet-1, …`."""
    by_reason: dict[str, list[str]] = {}
    for pool, why in reasons.items():
        by_reason.setdefault(why, []).append(str(pool))
    return "; ".join(f"{why}: {', '.join(pools)}" for why, pools in by_reason.items())
