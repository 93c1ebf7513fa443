"""Which nodes a job's work may run on, and why a piece of it has none. Pure: no cluster, no clock."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.contracts.resources import Market, Resources

MARKET_LABEL = "ray.io/market-type"
ACCELERATOR_LABEL = "ray.io/accelerator-type"
NODE_LABEL = "ray.io/node-id"
"""Ray's own labels: set by its autoscaler and KubeRay, or by `ray start --labels` and RAY_NODE_MARKET_TYPE."""
INSTANCE_TYPE_VARIABLE = "REKINDLE_INSTANCE_TYPE"
"""Of a node's environment: which type of machine it is, as the price list calls it."""

_MARKET_VALUES: Mapping[Market, tuple[str, ...]] = {"any": (), "spot": ("spot",), "on_demand": ("on-demand",)}
_EPSILON_CPUS = 1e-6
"""Ray hands CPUs out in ten-thousandths, and says them as floats."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job's work may run."""

    market: Market = "any"
    accelerator: str | None = None
    on_demand_counts: bool = False
    """Of a `spot` job that has waited long enough: on-demand nodes count too."""
    avoided_node: str | None = None
    """The id of a node that is not to be used, where others suit."""

    @classmethod
    def wanted(cls, resources: Resources, *, on_demand_counts: bool = False) -> "Place":
        """The place that a job asks for."""
        return cls(resources.market, resources.accelerator, on_demand_counts)

    def accepted(self) -> dict[str, tuple[str, ...]]:
        """The values of each label that a node must have, sorted; empty where every node will do."""
        markets = (("on-demand",) if self.on_demand_counts else ()) + _MARKET_VALUES[self.market]
        accepted = {MARKET_LABEL: markets} if markets else {}
        return accepted | ({ACCELERATOR_LABEL: (self.accelerator,)} if self.accelerator else {})

    def selector(self) -> dict[str, str]:
        """The same for Ray's option `label_selector`."""
        accepted = {
            label: values[0] if len(values) == 1 else f"in({','.join(values)})"
            for label, values in self.accepted().items()
        }
        return accepted | ({NODE_LABEL: f"!{self.avoided_node}"} if self.avoided_node else {})

    def suits(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels will do."""
        return all(labels.get(label) in values for label, values in self.accepted().items())

    def words(self) -> str:
        """E.g. `a spot node`."""
        kind = {"any": "a", "spot": "a spot", "on_demand": "an on-demand"}[self.market]
        kind += " or on-demand" if self.on_demand_counts else ""
        return f"{kind} node" + (f" with accelerator {self.accelerator}" if self.accelerator else "")


@dataclass(frozen=True, slots=True)
class NodeView:
    """A living node."""

    node_id: str
    """In hex."""
    labels: Mapping[str, str]
    total_cpus: float
    free_cpus: float
    draining: bool = False
    total_gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Unplaced:
    """Tasks or actors of any job that Ray has found no node for."""

    cpus: float
    accepted: Mapping[str, tuple[str, ...]]
    """The values of each label that their node must have."""
    count: int


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What Ray says of its nodes, and of what it has not placed."""

    nodes: Sequence[NodeView]
    unplaced: Sequence[Unplaced] = ()
    starting: Sequence[str] = ()
    """Types of nodes that its autoscaler has asked for."""
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    """Types of nodes that its autoscaler asked for in vain, and why."""


def suitable(view: ClusterView, cpus: float, place: Place) -> list[NodeView]:
    """The nodes that would take a piece of work of `cpus`, some time."""
    return [
        node
        for node in view.nodes
        if not node.draining and node.total_cpus >= cpus - _EPSILON_CPUS and place.suits(node.labels)
    ]


def count_cores(view: ClusterView, cores_per_node: int, place: Place) -> int:
    """How many single-threaded tasks the suitable nodes run well at once; at least 1.

    Their logical CPUs, but no more than `cores_per_node` on each: a node may declare more CPUs than it has.
    """
    return max(1, int(sum(min(node.total_cpus, cores_per_node) for node in suitable(view, 1, place))))


def obstacle(view: ClusterView, cpus: float, place: Place) -> str | None:
    """Why Ray has not placed a piece of work; None where it has, or is about to.

    Work of other jobs that asks for the same cannot be told apart from ours.
    """
    nodes = suitable(view, cpus, place)
    if not nodes:
        return _no_node(view, cpus, place) + _autoscaler_says(view)
    is_unplaced = any(
        abs(each.cpus - cpus) <= _EPSILON_CPUS and each.accepted == place.accepted() and each.count > 0
        for each in view.unplaced
    )
    if is_unplaced and not any(node.free_cpus >= cpus - _EPSILON_CPUS for node in nodes):
        count = f"the {len(nodes)} nodes that fit are" if len(nodes) > 1 else "the one node that fits is"
        return f"{count} busy with other work" + _autoscaler_says(view)
    return None


def _no_node(view: ClusterView, cpus: float, place: Place) -> str:
    working = [node for node in view.nodes if node.total_cpus > 0]
    if not working:
        return "no living node takes work"
    for label, values in place.accepted().items():
        if not any(node.labels.get(label) in values for node in working):
            return f"no living node has the label {label}={' or '.join(values)}; there are {_list(working, label)}"
    fitting = [node for node in working if place.suits(node.labels)]
    if not fitting:
        return "no living node has all the labels at once"
    if all(node.draining for node in fitting):
        return "every node that fits is about to go"
    return f"no node that fits has {cpus:g} CPU"


def _list(nodes: Iterable[NodeView], label: str) -> str:
    values = sorted({node.labels.get(label, "") for node in nodes})
    return ", ".join(value or "nodes without it" for value in values)


def _autoscaler_says(view: ClusterView) -> str:
    """What its autoscaler does about it; nothing where there is none."""
    starting = f"; starting: {', '.join(sorted(set(view.starting)))}" if view.starting else ""
    refused = "; ".join(f"could not start {kind}: {why}" for kind, why in sorted(view.refused.items()))
    return starting + (f"; {refused}" if refused else "")
