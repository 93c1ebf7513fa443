"""What the settings of a cluster take and refuse."""

from pathlib import Path
from typing import Any

import pytest
from moto.ec2.models.instance_types import INSTANCE_TYPES
from pydantic import ValidationError

from deploy.aws.instances import SHAPES
from deploy.aws.settings import SettingsUnusable, read_settings
from tests.unit.deploy.settings import settings

EXAMPLE = Path(__file__).parents[3] / "deploy/aws/cluster.example.toml"


def test_the_example_can_be_used_as_it_is(tmp_path: Path) -> None:
    read = read_settings(EXAMPLE)
    assert read.max_on_demand_workers == 1
    assert read.api_networks == ("203.0.113.7/32",)
    assert read.ssh_private_key == Path("~/.ssh/my-key.pem").expanduser()


def test_a_relative_key_is_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(EXAMPLE.read_text().replace("~/.ssh/my-key.pem", "my-key.pem"))
    assert read_settings(tmp_path / "c.toml").ssh_private_key == tmp_path / "my-key.pem"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ssh_from": "0.0.0.0/0"}, "SSH for everybody"),
        ({"ssh_from": "203.0.113.7/24"}, "host bits"),
        ({"ssh_from": "2001:db8::/32"}, "not an IPv4 network"),
        ({"instance_types": ["g4dn.xlarge", "p9.huge"]}, "p9.huge"),
        ({"instance_types": []}, "at least 1"),
        ({"zones": ["eu-west-1a"]}, "eu-west-1a is not in region us-east-1"),
        ({"bucket": "pets-data"}, "not s3://"),
        ({"bucket": "s3://pets-data/*"}, "pattern"),
        ({"sources": ["s3://photos/${aws:username}"]}, "pattern"),
        ({"max_on_demand_workers": 9}, "more than max_workers"),
        ({"gateway": {"REKINDLE_PORT": "1"}}, "REKINDLE_PORT"),
        ({"gateway": {"REKINDLE_TYPO": "1"}}, "REKINDLE_TYPO"),
        ({"tls_key": "key.pem"}, "belong together"),
        ({"name": "Pets"}, "pattern"),
        ({"ami": "latest"}, "pattern"),
        ({"typo": 1}, "typo"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        settings(**changes)
    assert says in str(refused.value)


@pytest.mark.parametrize(("text", "says"), [("name = ", "Invalid value"), ('name = "pets"', "region: Field required")])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(SettingsUnusable, match=says) as refused:
        read_settings(path)
    assert str(path) in str(refused.value)
    with pytest.raises(SettingsUnusable, match=r"cluster\.example\.toml"):
        read_settings(tmp_path / "missing.toml")


def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    tls = 'tls_certificate = "gateway.pem"\ntls_key = "key.pem"\nami = '
    (tmp_path / "c.toml").write_text(EXAMPLE.read_text().replace("ami = ", tls, 1))
    (tmp_path / "key.pem").touch()
    with pytest.raises(SettingsUnusable, match=r"there is no tls_certificate .*/gateway\.pem$"):
        read_settings(tmp_path / "c.toml")
    (tmp_path / "gateway.pem").touch()
    assert read_settings(tmp_path / "c.toml").tls_files == (tmp_path / "gateway.pem", tmp_path / "key.pem")


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes_are_ec2s(name: str) -> None:
    known = INSTANCE_TYPES[name]
    (gpu,) = known["GpuInfo"]["Gpus"]
    shape = SHAPES[name]
    assert (shape.cpus, shape.gpus, shape.accelerator) == (
        known["VCpuInfo"]["DefaultVCpus"],
        gpu["Count"],
        gpu["Name"],
    )
