"""`python -m deploy.aws`: a cluster up, a key to use it with, and down again."""

import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from deploy.aws import account
from deploy.aws.cluster import CLUSTER_ENV, GATEWAY_CONTAINER, GATEWAY_ENV, render, start_gateway
from deploy.aws.environment import cluster_environment, env_file, gateway_environment
from deploy.aws.groups import Groups
from deploy.aws.settings import AwsSettings, SettingsUnusable, read_settings
from services.runtime.auth import Scope

DATABASE_URL = "REKINDLE_DATABASE_URL"

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)

SettingsFile = Annotated[Path, typer.Argument(metavar="SETTINGS", help="A TOML file, see cluster.example.toml.")]
State = Annotated[
    Path, typer.Option(help="Folder on this machine for the cluster's YAML and its token.", metavar="FOLDER")
]
DEFAULT_STATE = Path(".rekindle/aws")


class Home:
    """What this machine keeps of one cluster. Readable by its owner only: there are secrets in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.cluster_yaml = self.folder / "cluster.yaml"
        self.everywhere = self.folder / "everywhere"
        """Copied to every machine."""
        self.gateway_env = self.folder / "gateway.env"

    def ray_token(self) -> str:
        """The cluster's token, made when it is asked for first."""
        path = self.folder / "ray-token"
        if not path.is_file():
            self.write(path, secrets.token_hex(32))
        return path.read_text()

    def write(self, path: Path, text: str) -> None:
        """The whole file or, when interrupted, the old one."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.new")
        fresh.unlink(missing_ok=True)
        with open(fresh, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
        fresh.replace(path)


@app.command()
def up(settings_file: SettingsFile, state: State = DEFAULT_STATE) -> None:
    """Starts the cluster, or brings the one that runs in line with the settings."""
    settings = _settings(settings_file)
    home = Home(state / settings.name)
    try:
        groups = account.prepare(settings, typer.echo)
    except (account.AccountUnusable, ClientError, BotoCoreError) as error:
        _fail(str(error))
    database_url = os.environ.get(DATABASE_URL)
    _write(settings, home, groups, database_url)
    _ray("up", "--yes", home.cluster_yaml)
    # Not among the YAML's file mounts: those go to every worker, and the database's password is the head's alone.
    _ray("rsync-up", home.cluster_yaml, home.gateway_env, GATEWAY_ENV)
    _ray("exec", "--run-env", "host", home.cluster_yaml, start_gateway(settings, restore=database_url is None))
    address = _ray("get-head-ip", home.cluster_yaml, show=False).strip().splitlines()[-1]
    typer.echo(f"the gateway is at http://{address}:{settings.api_port}; python -m deploy.aws key makes a key for it")


@app.command("render")
def render_only(
    settings_file: SettingsFile,
    node_group: Annotated[str, typer.Option(help="Id of the security group of all machines.")] = "sg-nodes",
    head_group: Annotated[str, typer.Option(help="Id of the head's own.")] = "sg-head",
) -> None:
    """Prints the YAML that `up` gives to Ray, and asks AWS nothing."""
    typer.echo(_yaml(_settings(settings_file), Groups(node_group, head_group), Path("everywhere")))


@app.command()
def key(
    settings_file: SettingsFile,
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[list[Scope], typer.Option(help="What it permits.")] = [Scope.ADMIN],  # noqa: B006
    state: State = DEFAULT_STATE,
) -> None:
    """Makes an API key and prints it, this once."""
    settings = _settings(settings_file)
    home = _existing(state / settings.name)
    if not name.replace("-", "").replace("_", "").isalnum():
        _fail(f"{name!r}: letters, digits, - and _ only")
    scopes = " ".join(f"--scope {each.value}" for each in scope)
    command = f"docker exec {GATEWAY_CONTAINER} rekindle keys create {name} {scopes}"
    _ray("exec", "--run-env", "host", home.cluster_yaml, command)


@app.command()
def down(
    settings_file: SettingsFile,
    state: State = DEFAULT_STATE,
    everything: Annotated[
        bool, typer.Option("--everything", help="The roles and security groups as well. The bucket always stays.")
    ] = False,
) -> None:
    """Ends all machines. Jobs go on after the next `up`, from their checkpoints in the bucket."""
    settings = _settings(settings_file)
    _ray("down", "--yes", _existing(state / settings.name).cluster_yaml)
    if everything:
        try:
            account.wait_until_gone(settings)
            account.remove(settings)
        except (account.AccountUnusable, ClientError, BotoCoreError) as error:
            _fail(str(error))


def _settings(path: Path) -> AwsSettings:
    try:
        return read_settings(path)
    except SettingsUnusable as error:
        _fail(str(error))


def _existing(folder: Path) -> Home:
    home = Home(folder)
    if not home.cluster_yaml.is_file():
        _fail(f"{home.cluster_yaml} is not there: `up` writes it, on the machine that it runs on")
    return home


def _write(settings: AwsSettings, home: Home, groups: Groups, database_url: str | None) -> None:
    token = home.ray_token()
    try:
        gateway = env_file(gateway_environment(settings, token, database_url))
    except ValueError as error:
        _fail(str(error))
    home.write(home.everywhere / CLUSTER_ENV, env_file(cluster_environment(settings, token)))
    home.write(home.gateway_env, gateway)
    home.write(home.cluster_yaml, _yaml(settings, groups, home.everywhere))


def _yaml(settings: AwsSettings, groups: Groups, everywhere: Path) -> str:
    config = render(settings, node_group=groups.nodes, head_group=groups.head, cluster_folder=str(everywhere))
    return yaml.dump(config, Dumper=_Plain, sort_keys=False, width=1000)


class _Plain(yaml.SafeDumper):
    """Without references, which a person reads badly."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


def _ray(command: str, *arguments: str | Path, show: bool = True) -> str:
    """Runs one of Ray's commands; ends this program with its exit code when that is not 0."""
    ray = Path(sys.executable).with_name("ray")
    environment = {**os.environ, "RAY_UP_enable_autoscaler_v2": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [str(ray), command, *map(str, arguments)],
        env=environment,
        stdout=None if show else subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        _fail(f"ray {command} failed", done.returncode)
    return done.stdout or ""


def _fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
