"""Ray's own autoscaler with our node provider and the cluster's YAML: nodes come from an EC2 that runs out of machines,
say themselves what they are, leave at a notice without a job losing a step, and go when they are idle."""

import contextlib
import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from deploy.aws import account
from deploy.aws.__main__ import cluster_yaml
from ray_cluster.autoscaling.aws import FallbackProvider
from services.contracts.jobs import JobEventType
from tests.chaos.fits import LONG, epochs, next_recovery, of_type, recoveries
from tests.chaos.runner.jobs import draw
from tests.cluster.attempts import ATTEMPT_TIMEOUT_S, Attempts, kill, wait_until
from tests.servers.ec2 import AMI, KEY, FakeEc2, Shortage
from tests.servers.ec2_nodes import Ec2Nodes, Machine, ec2_nodes
from tests.servers.ray_environment import ROOT
from tests.servers.ray_nodes import RayNodes, ray_nodes
from tests.unit.deploy.settings import settings

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NOTICE_S = 90
COOL_OFF_S = 10
COMES_WITHIN_S = 120
LONGER = LONG | {"fine_tuning": LONG["fine_tuning"] | {"epochs": 700}}
"""A fit that goes on until another machine has come and has loaded what it takes to go on with it there."""


def bootstrapped(ec2: FakeEc2, folder: Path) -> dict[str, Any]:
    """The cluster's YAML as Ray hands it to the head, but that ssh is left out and idle nodes go soon."""
    key = folder / "key.pem"
    key.write_text(ec2.client().create_key_pair(KeyName=KEY)["KeyMaterial"])
    chosen = settings(ssh_private_key=key, instance_types=["g4dn.xlarge", "g5.xlarge"], cool_off_s=COOL_OFF_S, ami=AMI)
    groups = account.prepare(chosen, lambda _line: None)
    config = prepare_config(yaml.safe_load(cluster_yaml(chosen, groups, folder)))
    validate_config(config)
    config = FallbackProvider.bootstrap_config(config)
    config["provider"]["disable_node_updaters"] = True
    for each in config["available_node_types"].values():
        each["idle_timeout_s"] = 5
    return config


@pytest.fixture
def config(ec2: FakeEc2, tmp_path: Path) -> dict[str, Any]:
    return bootstrapped(ec2, tmp_path)


@pytest.fixture
def cluster(ec2: FakeEc2, config: dict[str, Any], tmp_path: Path) -> Iterator[RayNodes]:
    """A head with the autoscaler on it, and no node."""
    provider = FallbackProvider(config["provider"], config["cluster_name"])
    head_type = config["available_node_types"]["head"]
    tags = {"ray-node-type": "head", "ray-user-node-type": "head", "ray-node-status": "up-to-date"}
    (head_id,) = provider.create_node(copy.deepcopy(head_type["node_config"]), tags, 1)
    ec2.launches.clear()
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "head_node"}))
    env = {
        **ec2.env(),
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": head_id,
        "RAY_NODE_TYPE_NAME": "head",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "REKINDLE_TRAINER_IDLE_S": "10",  # a warm trainer keeps its node from being idle
    }
    with ray_nodes(spots=0, env=env, head_options={"autoscaling-config": path}) as cluster:
        yield cluster


@pytest.fixture
def machines(ec2: FakeEc2, cluster: RayNodes, config: dict[str, Any]) -> Iterator[Ec2Nodes]:
    with ec2_nodes(ec2, cluster, config) as machines:
        yield machines


@contextlib.contextmanager
def work(cluster: RayNodes) -> Iterator[subprocess.Popen[bytes]]:
    """One task, which any node can run."""
    command = [sys.executable, "-m", "tests.servers.work_on_a_node"]
    process = subprocess.Popen(command, env=cluster.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        kill(process)


def result(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, err = process.communicate(timeout=COMES_WITHIN_S)
    assert process.returncode == 0, err.decode()[-4000:]
    (line,) = [line for line in out.splitlines() if line.startswith(b"{")]  # Ray tells of lost nodes, too
    return json.loads(line)


def test_nodes_come_leave_at_a_notice_and_go(
    ec2: FakeEc2, cluster: RayNodes, machines: Ec2Nodes, tmp_path: Path
) -> None:
    # Work that asks for nothing gets an on-demand machine where spot has none, and the node says so.
    ec2.shortages.append(Shortage(market="spot"))
    with work(cluster) as process:
        done = result(process)
    assert done["labels"]["ray.io/market-type"] == "on-demand"
    assert [machine.node_type for machine in machines.came] == ["any"]
    first_zone, second_zone = ec2.subnets("us-east-1a", "us-east-1b")
    assert ec2.pools_asked() == [
        ("spot", "g4dn.xlarge", first_zone),
        ("spot", "g5.xlarge", first_zone),
        ("spot", "g4dn.xlarge", second_zone),
        ("spot", "g5.xlarge", second_zone),
        ("on-demand", "g4dn.xlarge", first_zone),
    ]

    # A job for spot waits until there is spot again. Meanwhile the other node is idle, and goes.
    images = draw(tmp_path / "images", 0).images
    attempts = Attempts(cluster, (tmp_path / "bucket").as_uri())
    job = attempts.accept(images, "struck", resources={"market": "spot"}, **LONGER)
    with attempts.begun(job) as driver:
        _until(lambda: not machines.running)
        assert not of_type(attempts, job, JobEventType.EPOCH)
        assert {pool[0] for pool in ec2.pools_asked()[5:]} <= {"spot"}
        ec2.shortages.clear()
        _until(lambda: epochs(attempts, job))
        (noticed,) = machines.running.values()
        assert noticed.node_type == "spot"
        assert noticed.instance["InstanceLifecycle"] == "spot"

        # At a notice the watcher drains the node, the autoscaler brings another one, and the job moves there.
        noticed.imds.notify(NOTICE_S)
        try:
            _until(lambda: '"spot.draining"' in _watcher_log(noticed))
        except AssertionError:
            pytest.fail(f"the watcher did not drain the node: {_watcher_log(noticed)[-4000:]}")
        recovery = next_recovery(attempts, job, driver)
        assert recovery.epoch > 0
        assert [machine.node_type for machine in machines.running.values()] == ["spot", "spot"]
        ec2.client().terminate_instances(InstanceIds=[noticed.instance["InstanceId"]])
        assert driver.wait(ATTEMPT_TIMEOUT_S) == 0, attempts.log(job)
    assert len(recoveries(attempts, job)) == 1
    done = epochs(attempts, job)
    assert done == sorted(set(done)), "epochs were done twice"

    # The same job with nothing from this one, and with nothing happening to it.
    alone = Attempts(cluster, (tmp_path / "other-bucket").as_uri())
    undisturbed = alone.accept(images, "undisturbed", resources={"market": "spot"}, **LONGER)
    assert alone.run(undisturbed) == 0, alone.log(undisturbed)
    assert not recoveries(alone, undisturbed)
    assert alone.model(undisturbed).tail_sha256 == attempts.model(job).tail_sha256

    # At the end only the head is left.
    _until(lambda: not machines.running)
    assert [_tag(each, "ray-node-type") for each in ec2.instances()] == ["head"]


def _until(true: Callable[[], object]) -> None:
    wait_until(true, timeout_s=COMES_WITHIN_S)


def _watcher_log(machine: Machine) -> str:
    path = machine.node.temp_dir / "spot-watcher.log"
    return path.read_text() if path.exists() else ""


def _tag(instance: dict[str, Any], key: str) -> str:
    return next(tag["Value"] for tag in instance["Tags"] if tag["Key"] == key)
