"""The node types that Ray's autoscaler chooses from. Pure.

Ray chooses a type by the labels that work asks for, then by `priority`; it does not turn to another type when a launch
fails. So each kind of demand has a type of its own, and the machines for it are found in the launch
(`ray_cluster.autoscaling`):

- `any` promises no market. Its machines are spot, and on demand where spot has none; what it became, the machine says
  itself when it joins. Work that asks for nothing gets it.
- `spot` has spot machines only, for work that asks for spot.
- `on-demand` is above `spot`: work that accepts both has waited for spot long enough
  (`on_demand_after_s`).
- Each again for every accelerator (`any-t4`), below those without, for work that asks for one.
"""

from collections.abc import Iterable
from typing import Any

from deploy.aws.instances import SHAPES
from deploy.aws.settings import AwsSettings
from ray_cluster.autoscaling.pools import Market
from ray_cluster.train.machines import ACCELERATOR_LABEL, MARKET_LABEL

HEAD_TYPE = "head"

_MARKETS: dict[str, tuple[Market, ...]] = {
    "any": (Market.SPOT, Market.ON_DEMAND),
    "on-demand": (Market.ON_DEMAND,),
    "spot": (Market.SPOT,),
}
"""In order of priority."""


def worker_types(settings: AwsSettings, node_config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The types by name, without what concerns Docker. `node_config` is what all their machines have."""
    accelerators = dict.fromkeys(SHAPES[each].accelerator for each in settings.instance_types)
    kinds = [(market, accelerator) for market in _MARKETS for accelerator in (None, *accelerators)]
    types: dict[str, dict[str, Any]] = {}
    for place, (market, accelerator) in enumerate(kinds):
        offers = list(_offers(settings, market, accelerator))
        if not offers:
            continue
        shapes = [SHAPES[offer["InstanceType"]] for offer in offers]
        labels = {MARKET_LABEL: market} if market != "any" else {}
        name = market if accelerator is None else f"{market}-{accelerator.lower()}"
        types[name] = {
            # What the smallest has. The same resources everywhere: Ray looks at these before it looks at `priority`.
            "resources": {"CPU": _cpus(settings), "GPU": min(shape.gpus for shape in shapes)},
            "labels": labels | ({ACCELERATOR_LABEL: accelerator} if accelerator else {}),
            "min_workers": 0,
            "max_workers": settings.max_on_demand_workers if market == "on-demand" else settings.max_workers,
            "priority": 10 * (len(kinds) - place),
            "node_config": {**node_config, "Offers": offers},
        }
    return types


def _cpus(settings: AwsSettings) -> int:
    return min(SHAPES[each].cpus for each in settings.instance_types)


def _offers(settings: AwsSettings, market: str, accelerator: str | None) -> Iterable[dict[str, str]]:
    for each in _MARKETS[market]:
        if each is Market.ON_DEMAND and settings.max_on_demand_workers == 0:
            continue
        for instance_type in settings.instance_types:
            if accelerator in (None, SHAPES[instance_type].accelerator):
                yield {"Market": str(each), "InstanceType": instance_type}
