"""Which Serve applications should exist: one per trunk that a published version needs. Pure.

The config is declarative: it is sent whole, when it differs from what Serve was last sent. After a restart of the
cluster Serve knows nothing, so it differs again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from services.contracts.ids import TrunkId
from services.contracts.serving import IMPORT_PATH, ReplicaScale, TrunkApplicationArgs, application_name, trunk_route
from services.training.ray_api import ServeApplication

PROXY_LOCATION = "HeadOnly"
"""Gateways ask at one URL. A proxy on a spot node would go with its node, and with the requests it holds."""


@dataclass(frozen=True, slots=True)
class ServeTarget:
    """What every config shares."""

    bucket_uri: str
    http_host: str
    http_port: int
    scale: ReplicaScale = field(default_factory=ReplicaScale)


def desired_config(trunk_ids: Iterable[TrunkId], target: ServeTarget) -> dict[str, JsonValue]:
    """The body for `PUT /api/serve/applications/`."""
    applications: list[JsonValue] = [_application(trunk_id, target) for trunk_id in sorted(set(trunk_ids))]
    return {
        "proxy_location": PROXY_LOCATION,
        "http_options": {"host": target.http_host, "port": target.http_port},
        "applications": applications,
    }


def _application(trunk_id: TrunkId, target: ServeTarget) -> JsonValue:
    args = TrunkApplicationArgs(trunk_id=trunk_id, bucket_uri=target.bucket_uri, **target.scale.model_dump())
    return {
        "name": application_name(trunk_id),
        "route_prefix": trunk_route(trunk_id),
        "import_path": IMPORT_PATH,
        "args": args.model_dump(mode="json"),
    }


def differs(desired: Mapping[str, JsonValue], observed: Mapping[str, ServeApplication]) -> bool:
    """Whether Serve must be sent `desired`.

    Applications that are being deleted do not count, and neither do fields that Serve adds by itself. A failed
    deployment is not sent again: Serve retries by itself, and sending it again would start its replicas over.
    """
    wanted = desired["applications"]
    configs: dict[str, dict[str, JsonValue]] = {}
    for each in wanted if isinstance(wanted, list) else []:
        if isinstance(each, dict):
            configs[str(each["name"])] = each
    present = {name: app for name, app in observed.items() if app.status != "DELETING"}
    if configs.keys() != present.keys():
        return True
    return any(_config_differs(config, present[name].config) for name, config in configs.items())


def _config_differs(config: dict[str, JsonValue], deployed: dict[str, JsonValue] | None) -> bool:
    return deployed is None or any(deployed.get(field) != value for field, value in config.items())
