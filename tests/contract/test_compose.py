"""deploy/compose.yaml against the compose specification, and against what the processes in it need."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from services.local.ray_head import CLUSTER_ENVIRONMENT
from services.runtime.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
_VARIABLE = re.compile(r"\$\{(\w+)(:-|:\?)([^}]*)\}")


def variables(text: str) -> dict[str, str | None]:
    """The variables in it, with their defaults."""
    return {name: default if kind == ":-" else None for name, kind, default in _VARIABLE.findall(text)}


@pytest.fixture
def compose() -> dict[str, Any]:
    """As Docker reads it, where every required variable is `secret`."""
    text = (DEPLOY / "compose.yaml").read_text()
    return yaml.safe_load(_VARIABLE.sub(lambda found: found[3] if found[2] == ":-" else "secret", text))


def check(compose: dict[str, Any]) -> None:
    PyCompose.from_json(json.dumps(compose)).to_spec()


def test_the_specification_knows_every_word_of_it(compose: dict[str, Any]) -> None:
    check(compose)


@pytest.mark.parametrize(("key", "value"), [("imag", "x"), ("restart", "sometimes"), ("ports", "8080")])
def test_a_mistake_would_be_found(compose: dict[str, Any], key: str, value: str) -> None:
    wrong = copy.deepcopy(compose)
    wrong["services"]["gateway"][key] = value
    with pytest.raises(ValueError, match=r".+"):
        check(wrong)


def test_what_it_refers_to_is_there(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, name
            assert how["condition"] != "service_healthy" or "healthcheck" in services[other] or _ours(services[other])
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"], name
    hosts = re.findall(r"https?://([a-z-]+):|@([a-z-]+)/|--address=([a-z-]+):", json.dumps(services))
    assert {"".join(host) for host in hosts} == {"objects", "ray-head", "database"}


def test_it_has_what_a_deployment_needs(compose: dict[str, Any]) -> None:
    assert compose["services"].keys() == {"database", "objects", "bucket", "gateway", "ray-head", "ray-worker"}
    assert "--num-cpus=0" in compose["services"]["ray-head"]["command"]
    assert compose["services"]["ray-worker"]["deploy"]["replicas"] > 1
    for name in ("database", "objects", "gateway", "ray-head", "ray-worker"):
        assert compose["services"][name]["restart"] == "unless-stopped", name


def test_no_secret_has_a_default_and_the_example_lists_them_all() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    required = {name for name, default in variables(text).items() if default is None}
    example = (DEPLOY / "compose.env.example").read_text()
    assert set(re.findall(r"^(\w+)=", example, re.MULTILINE)) == required
    assert required == {"POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "RAY_TOKEN"}
    assert not re.search(r"\$\{\w+\}|\$[A-Za-z]", text), "one without a message would be empty without a word"


def test_images_have_a_tag_and_ports_are_this_machines_own(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert re.fullmatch(r"[\w./-]+:[\w.-]+", service["image"]), name
        assert not service["image"].endswith(":latest"), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_every_ray_node_has_the_clusters_environment_and_the_token(compose: dict[str, Any]) -> None:
    for name in ("ray-head", "ray-worker"):
        environment = compose["services"][name]["environment"]
        assert CLUSTER_ENVIRONMENT.items() <= environment.items(), name
        assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN"]) == ("token", "secret")


def test_the_gateway_takes_its_environment_and_wants_keys(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = compose["services"]["gateway"]["environment"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.api_keys_required
    assert settings.bucket_uri == "s3://rekindle"
    assert compose["services"]["gateway"]["ports"] == [f"127.0.0.1:8080:{settings.port}"]
    known = {f"REKINDLE_{name}".upper() for name in Settings.model_fields}
    assert {name for name in environment if name.startswith("REKINDLE_")} <= known


def _ours(service: dict[str, Any]) -> bool:
    """Whether the image, which is ours, has a health check in it."""
    return service["image"].startswith("rekindle:")
