"""The cluster's YAML: taken by Ray, and what it promises about machines, tokens and the watcher."""

import copy
import shlex
from typing import Any

import pytest
import yaml
from jsonschema.exceptions import ValidationError
from ray.autoscaler._private.loader import load_function_or_class
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.sdk import get_docker_host_mount_location

from deploy.aws.__main__ import cluster_yaml
from deploy.aws.cluster import CLUSTER_FOLDER, on_host, start_gateway
from deploy.aws.environment import cluster_environment, env_file, gateway_environment
from deploy.aws.groups import Groups
from ray_cluster.autoscaling.aws import FallbackProvider
from services.local.ray_head import DEATH_DETECTION
from services.runtime.settings import Settings
from tests.unit.deploy.settings import settings


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """As `up` writes it and Ray reads it."""
    folder = tmp_path_factory.mktemp("everywhere")
    return yaml.safe_load(cluster_yaml(settings(), Groups("sg-nodes", "sg-head"), folder))


def workers(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: each for name, each in cluster["available_node_types"].items() if name != "head"}


def test_ray_takes_it(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_ray_would_refuse_a_mistake(cluster: dict[str, Any]) -> None:
    wrong = copy.deepcopy(cluster)
    wrong["available_node_types"]["any"]["typo"] = 1
    with pytest.raises(ValidationError, match="typo"):
        validate_config(prepare_config(wrong))


def test_it_names_our_provider(cluster: dict[str, Any]) -> None:
    assert load_function_or_class(cluster["provider"]["module"]) is FallbackProvider
    assert FallbackProvider.fillout_available_node_types_resources(cluster) == cluster


def test_the_head_is_bought_on_demand_and_takes_no_work(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"]["head"]
    assert head["resources"] == {"CPU": 0}
    assert head["labels"] == {"ray.io/market-type": "on-demand"}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert "--num-cpus=0" in cluster["head_start_ray_commands"][-1]


def test_every_machine_has_metadata_by_token_only_and_an_encrypted_disk(cluster: dict[str, Any]) -> None:
    for each in cluster["available_node_types"].values():
        options = each["node_config"]["MetadataOptions"]
        assert (options["HttpTokens"], options["HttpPutResponseHopLimit"]) == ("required", 2)
        assert [disk["Ebs"]["Encrypted"] for disk in each["node_config"]["BlockDeviceMappings"]] == [True]


def test_head_and_workers_have_roles_and_groups_of_their_own(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"]["head"]["node_config"]
    assert head["IamInstanceProfile"] == {"Name": "rekindle-pets-head"}
    assert head["SecurityGroupIds"] == ["sg-nodes", "sg-head"]
    for each in workers(cluster).values():
        assert each["node_config"]["IamInstanceProfile"] == {"Name": "rekindle-pets-worker"}
        assert each["node_config"]["SecurityGroupIds"] == ["sg-nodes"]
        assert each["docker"]["worker_image"].endswith("ray-gpu")


def test_every_worker_says_how_it_was_bought_and_watches_for_its_notice(cluster: dict[str, Any]) -> None:
    _stop, start, watch = cluster["worker_start_ray_commands"]
    assert "machine=$(python -m ray_cluster.spot.market --environment) && env $machine ray start" in start
    assert "--address=$RAY_HEAD_IP:6379" in start
    words = shlex.split(watch)
    assert words[:4] == ["setsid", "nohup", "bash", "-c"]
    assert words[4] == "until python -m ray_cluster.spot.watcher; do sleep 2; done"
    assert words[-1] == "&"


def test_nothing_of_ray_can_be_reached_without_the_token(cluster: dict[str, Any]) -> None:
    environment = cluster_environment(settings(), "very-secret")
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN"] == "very-secret"
    # Ray copies the folder to this place on each machine before it starts the container there.
    place = f"{get_docker_host_mount_location('pets')}{CLUSTER_FOLDER}/cluster.env"
    assert f"--env-file={place}" in cluster["docker"]["run_options"]
    assert list(cluster["file_mounts"]) == [CLUSTER_FOLDER]
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert "very-secret" not in yaml.safe_dump(cluster)


def test_the_cluster_keeps_the_arithmetic_and_notices_deaths_as_a_local_one() -> None:
    environment = cluster_environment(settings(), "t")
    assert DEATH_DETECTION.items() <= environment.items()
    assert {environment[name] for name in environment if name.endswith("NUM_THREADS")} == {"1"}


def test_the_gateway_takes_its_environment_and_wants_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(sources=["s3://photos"], gateway={"REKINDLE_BASE_WEIGHTS": "imagenet"})
    environment = gateway_environment(chosen, "very-secret", "postgresql://me:secret@db/rekindle")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    read = Settings()
    assert read.api_keys_required
    assert not read.local_sources_allowed
    assert read.bucket_uri == "s3://pets-data/rekindle"
    assert read.allowed_sources == ("s3://pets-data/rekindle", "s3://photos")
    assert read.ray_token is not None
    assert read.ray_token.get_secret_value() == "very-secret"
    assert read.base_weights == "imagenet"


def test_the_databases_password_is_not_for_workers() -> None:
    secret = "postgresql://me:secret@db/rekindle"
    assert secret in gateway_environment(settings(), "t", secret).values()
    assert secret not in env_file(cluster_environment(settings(), "t"))


def test_a_value_that_an_environment_file_cannot_hold_is_refused() -> None:
    assert env_file({"B": "2 $x 'y'", "A": "1"}) == "A=1\nB=2 $x 'y'\n"
    with pytest.raises(ValueError, match="A"):
        env_file({"A": "1\nB=2"})


def test_the_gateway_is_started_again_by_docker_and_restored_where_its_disk_was_lost() -> None:
    command = start_gateway(settings(), restore=True)
    assert command.index("rekindle restore --yes") < command.index("docker run --detach")
    assert "--restart unless-stopped" in command
    assert f"--env-file {on_host(settings(), '/tmp/rekindle/gateway.env')}" in command
    assert "restore" not in start_gateway(settings(), restore=False)


def test_machines_log_in_where_the_images_are_in_the_accounts_registry(cluster: dict[str, Any]) -> None:
    assert cluster["initialization_commands"] == []
    registry = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
    chosen = settings(worker_image=f"{registry}/rekindle:gpu")
    (login,) = yaml.safe_load(cluster_yaml(chosen, Groups("a", "b"), chosen.ssh_private_key))["initialization_commands"]
    assert "--region eu-west-1" in login
    assert login.endswith(f"--password-stdin {registry}")


def test_subnets_of_ones_own_take_the_place_of_zones() -> None:
    chosen = settings(subnets=["subnet-1", "subnet-2"])
    rendered = yaml.safe_load(cluster_yaml(chosen, Groups("a", "b"), chosen.ssh_private_key))
    assert "availability_zone" not in rendered["provider"]
    assert rendered["available_node_types"]["any"]["node_config"]["SubnetIds"] == ["subnet-1", "subnet-2"]
