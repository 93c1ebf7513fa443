"""`python -m deploy.aws` with Ray's own `ray up` and `ray down`, on machines that are played."""

import json
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.aws.__main__ import app
from tests.servers.ec2 import KEY, REGION, FakeEc2
from tests.servers.played_ssh import PlayedMachines, play

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Launcher:
    """The machine that the commands are run on."""

    folder: Path
    machines: PlayedMachines
    captured: pytest.CaptureFixture[str]

    @property
    def state(self) -> Path:
        return self.folder / "state" / "pets"

    def run(self, command: str, *arguments: str) -> tuple[object, str, str]:
        """The exit code, and what was written to standard output and standard error."""
        with pytest.raises(SystemExit) as ended:
            app([command, "cluster.toml", *arguments, "--state", "state"])
        written = self.captured.readouterr()
        return ended.value.code, written.out, written.err


@pytest.fixture
def launcher(
    ec2: FakeEc2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Launcher:
    programs = tmp_path / "bin"
    programs.mkdir()
    key = tmp_path / "my-key.pem"
    key.write_text(ec2.client().create_key_pair(KeyName=KEY)["KeyMaterial"])
    example = (ROOT / "deploy/aws/cluster.example.toml").read_text()
    changes = {
        'name = "rekindle"': 'name = "pets"',
        "~/.ssh/my-key.pem": "my-key.pem",
        "s3://my-bucket/rekindle": "s3://pets-data/rekindle",
        "# tls_": "tls_",
    }
    (tmp_path / "gateway.pem").write_text("the certificate")
    (tmp_path / "gateway-key.pem").write_text("its key")
    for old, new in changes.items():
        assert old in example
        example = example.replace(old, new)
    (tmp_path / "cluster.toml").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(programs))  # whatever happens, the real ones are not found
    monkeypatch.setenv("REKINDLE_DATABASE_URL", "postgresql://me:database-secret@db/rekindle")
    monkeypatch.setenv("RAY_UP_enable_autoscaler_v2", "0")  # what is set here is undone, what `up` sets is not
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # Ray keeps what AWS answered there
    return Launcher(tmp_path, play(programs), capfd)


def test_up_a_key_and_down(launcher: Launcher, ec2: FakeEc2) -> None:
    code, out, err = launcher.run("up")
    assert code == 0, out + err

    (head,) = ec2.instances()
    tags = {each["Key"]: each["Value"] for each in head["Tags"]}
    assert tags["ray-node-type"] == "head"
    assert tags["ray-node-status"] == "up-to-date"
    assert "InstanceLifecycle" not in head
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert head["IamInstanceProfile"]["Arn"].endswith("/rekindle-pets-head")
    names = {group["GroupName"] for group in head["SecurityGroups"]}
    assert names == {"rekindle-pets-nodes", "rekindle-pets-head"}
    assert f"https://{head['PublicIpAddress']}:8080" in out

    calls = launcher.machines.calls()
    commands = [call.command for call in calls]
    token = (launcher.state / "ray-token").read_text()
    assert len(token) == 64
    assert {call.host for call in calls} == {f"ubuntu@{head['PublicIpAddress']}"}
    starts_container, starts_ray, starts_gateway = (
        _only(commands, part)
        for part in (
            "docker run --rm --name rekindle-ray",
            "ray start --head",
            "docker run --detach --name rekindle-gate",
        )
    )
    assert starts_container < starts_ray < starts_gateway
    assert "RAY_enable_autoscaler_v2" in commands[starts_ray]
    assert "restore" not in commands[starts_gateway], "it has a database that outlives the head"
    assert "--env-file=/tmp/ray_tmp_mount/pets/etc/rekindle/cluster.env" in commands[starts_container]
    assert token not in "".join(commands)

    copied = {call.target: call.text for call in calls if call.program == "rsync"}
    everywhere = copied["/tmp/ray_tmp_mount/pets/etc/rekindle/"]
    assert f"RAY_AUTH_TOKEN={token}" in everywhere
    assert "database-secret" not in everywhere, "workers get this"
    assert "database-secret" in copied["/tmp/ray_tmp_mount/pets/tmp/rekindle/gateway.env"]
    tls = "/tmp/ray_tmp_mount/pets/tmp/rekindle/tls"
    assert (copied[f"{tls}/certificate.pem"], copied[f"{tls}/key.pem"]) == ("the certificate", "its key")
    assert f"--volume {tls}:/etc/rekindle/tls:ro" in commands[starts_gateway]
    assert "REKINDLE_TLS_KEY=/etc/rekindle/tls/key.pem" in copied["/tmp/ray_tmp_mount/pets/tmp/rekindle/gateway.env"]
    config = json.loads(copied["/tmp/ray_tmp_mount/pets/~/ray_bootstrap_config.yaml"])
    assert config["provider"]["module"] == "ray_cluster.autoscaling.aws.FallbackProvider"
    zones = ec2.subnets("us-east-1a", "us-east-1b", "us-east-1c")
    assert config["available_node_types"]["any"]["node_config"]["SubnetIds"] == zones
    for secret in ("ray-token", "cluster.yaml", "gateway.env", "everywhere/cluster.env"):
        assert stat.S_IMODE((launcher.state / secret).stat().st_mode) == 0o600, secret

    code, out, err = launcher.run("key", "laptop", "--scope", "train")
    assert code == 0, out + err
    assert "rk_played" in out
    assert (
        "docker exec rekindle-gateway rekindle keys create laptop --scope train"
        in launcher.machines.calls()[-1].command
    )

    code, out, err = launcher.run("down", "--everything")
    assert code == 0, out + err
    assert ec2.instances() == []
    iam = ec2.client("iam")
    assert iam.list_instance_profiles()["InstanceProfiles"] == []
    assert [each["Name"] for each in ec2.client("s3").list_buckets()["Buckets"]] == ["pets-data"]


def _only(commands: list[str], part: str) -> int:
    """The place of the one command with this in it."""
    (found,) = [number for number, command in enumerate(commands) if part in command]
    return found


def test_mistakes_are_told_in_a_line_and_nothing_is_started(launcher: Launcher, ec2: FakeEc2) -> None:
    settings = launcher.folder / "cluster.toml"
    settings.write_text(settings.read_text().replace(REGION, "us-east-9", 1))
    code, _, err = launcher.run("up")
    assert code == 1
    assert "us-east-1a, us-east-1b, us-east-1c is not in region us-east-9" in err
    assert "Traceback" not in err
    assert ec2.instances() == []
    assert launcher.machines.calls() == []
