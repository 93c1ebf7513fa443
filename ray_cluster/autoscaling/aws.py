"""A node provider for Ray's autoscaler that tries one pool of EC2 machines after the other.

Ray's own provider for AWS knows one type of machine per node type, tries its zones over and over, and asks again five
seconds later. Here a node type has `Offers` in its `node_config`, and a launch goes through their pools: spot before
on-demand, zone after zone, type after type. A pool that had nothing is left alone for `cool_off_s`.

In the cluster's YAML:

    provider:
      type: external
      module: ray_cluster.autoscaling.aws.FallbackProvider
      cool_off_s: 180               # seconds
      max_on_demand_workers: 2      # over all node types
"""

import logging
import sys
import threading
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider, to_aws_format
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_CLUSTER_NAME, TAG_RAY_NODE_KIND

from ray_cluster.autoscaling.pools import (
    CAPACITY_CODES,
    COOL_OFF_S,
    CoolOff,
    Market,
    Pool,
    describe,
    in_order,
    read_offers,
)

OFFERS = "Offers"
"""Of a worker's `node_config`. A node type without them, as the head's, is launched as Ray itself does it."""
NO_CAPACITY = "NoCapacity"
"""Category of the `NodeLaunchException` when no pool has a machine."""
_SPOT_OPTIONS = {
    "MarketType": "spot",
    "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
}
_ON_DEMAND_FULL = "the cluster has its max_on_demand_workers"

_log = logging.getLogger(__name__)


class FallbackProvider(AWSNodeProvider):
    """Called by the autoscaler on the head, from several threads, and by `ray up` and `ray down`."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._cool_off = CoolOff(float(provider_config.get("cool_off_s", COOL_OFF_S)))
        self._max_on_demand = int(provider_config.get("max_on_demand_workers", 0))
        self._launching = threading.Lock()

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Nothing: a node type of several machines declares what all of them have."""
        return cluster_config

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launches up to `count` machines, from as many pools as it takes; the instances by id.

        Fewer than `count` where the pools have no more; Ray asks for the others again.

        Raises:
            NodeLaunchException: no pool has any (category `NoCapacity`; the autoscaler asks again), or EC2 refused for
                a reason that no other pool would mend (category: EC2's code).
            ValueError: the offers cannot be read.
        """
        if OFFERS not in node_config:
            return super().create_node(node_config, tags, count)
        pools = in_order(read_offers(node_config[OFFERS]), node_config["SubnetIds"])
        with self._launching:
            return self._launch(pools, node_config, tags, count)

    def _launch(
        self, pools: list[Pool], node_config: Mapping[str, Any], tags: Mapping[str, str], count: int
    ) -> dict[str, Any]:
        launched: dict[str, Any] = {}
        reasons: dict[Pool, str] = {}
        for pool in pools:
            why = self._cool_off.why_closed(pool) or self._ask(pool, node_config, tags, count, launched)
            if why is not None:
                reasons[pool] = why
            if len(launched) == count:
                return launched
        if launched:
            _log.warning("%d of %d machines launched; %s", len(launched), count, describe(reasons))
            return launched
        again = self._cool_off.opens_in_s(pools)
        raise NodeLaunchException(NO_CAPACITY, f"{describe(reasons)}; asked again in {again:.0f} s", None)

    def _ask(
        self, pool: Pool, node_config: Mapping[str, Any], tags: Mapping[str, str], count: int, launched: dict[str, Any]
    ) -> str | None:
        """Adds what the pool gives to `launched`, up to `count` in all. Why it gives nothing, as EC2's code; it is
        closed then.

        Raises `NodeLaunchException` where EC2 refuses for another reason, unless something is launched already: then
        that is what the launch gave.
        """
        wanted = count - len(launched)
        if pool.market is Market.ON_DEMAND:
            wanted = min(wanted, self._max_on_demand - self._on_demand_workers())
            if wanted <= 0:
                return _ON_DEMAND_FULL
        request = self._request(pool, node_config, tags, wanted)
        try:
            instances = self.ec2_fail_fast.create_instances(**request)  # pyright: ignore[reportAttributeAccessIssue]
        except ClientError as error:
            code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
            if code in CAPACITY_CODES:
                _log.warning("no machine from %s: %s: %s", pool, code, message)
                self._cool_off.close(pool, code)
                return code
            if launched:
                _log.warning("no more machines: %s refused: %s: %s", pool, code, message)
                return code
            raise NodeLaunchException(code, f"{pool}: {message}", sys.exc_info()) from error
        launched.update({instance.id: instance for instance in instances})
        _log.info("launched %d of %s", len(instances), pool)
        return None

    def _request(
        self, pool: Pool, node_config: Mapping[str, Any], tags: Mapping[str, str], count: int
    ) -> dict[str, Any]:
        request = {name: value for name, value in node_config.items() if name not in (OFFERS, "SubnetIds")}
        named = {TAG_RAY_CLUSTER_NAME: self.cluster_name, **to_aws_format(dict(tags))}
        listed = [{"Key": key, "Value": value} for key, value in sorted(named.items())]
        market = {"InstanceMarketOptions": _SPOT_OPTIONS} if pool.market is Market.SPOT else {}
        return {
            **request,
            **market,
            "InstanceType": pool.instance_type,
            "SubnetId": pool.subnet_id,
            "MinCount": 1,
            "MaxCount": count,
            "TagSpecifications": [{"ResourceType": kind, "Tags": listed} for kind in ("instance", "volume")],
        }

    def _on_demand_workers(self) -> int:
        """Those that EC2 lists; one that was launched a second ago may be missing."""
        filters = [
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
            {"Name": f"tag:{TAG_RAY_CLUSTER_NAME}", "Values": [self.cluster_name]},
            {"Name": f"tag:{TAG_RAY_NODE_KIND}", "Values": [NODE_KIND_WORKER]},
        ]
        workers = self.ec2.instances.filter(Filters=filters)  # pyright: ignore[reportAttributeAccessIssue]
        return sum(1 for worker in workers if worker.instance_lifecycle != Market.SPOT)
