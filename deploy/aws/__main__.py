"""`python -m deploy.aws`: a cluster up, a key to use it with, and down again."""

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from deploy.aws import account
from deploy.aws.cluster import CLUSTER_ENV, GATEWAY_CONTAINER, GATEWAY_ENV, GATEWAY_TLS, render, start_gateway
from deploy.aws.environment import TLS_FILES, cluster_environment, env_file, gateway_environment
from deploy.aws.groups import Groups
from deploy.aws.home import Home
from deploy.aws.launch import LaunchFailed, copy_to_head, ray_down, ray_up, run_on_head
from deploy.aws.settings import AwsSettings, SettingsUnusable, read_settings
from services.runtime.auth import Scope

DATABASE_URL = "REKINDLE_DATABASE_URL"
DEFAULT_STATE = Path(".rekindle/aws")

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)

SettingsFile = Annotated[Path, typer.Argument(metavar="SETTINGS", help="A TOML file, see cluster.example.toml.")]
State = Annotated[
    Path, typer.Option(help="Folder on this machine for the cluster's YAML and its token.", metavar="FOLDER")
]


@app.command()
def up(settings_file: SettingsFile, state: State = DEFAULT_STATE) -> None:
    """Starts the cluster, or brings the one that runs in line with the settings.

    The gateway's database is REKINDLE_DATABASE_URL of the environment; without, SQLite on the head's disk, which is
    rebuilt from the bucket after the head was replaced.
    """
    settings = _settings(settings_file)
    home = Home(state / settings.name)
    database_url = os.environ.get(DATABASE_URL)
    try:
        groups = account.prepare(settings, typer.echo)
        _write(settings, home, groups, database_url)
        address = ray_up(home.cluster_yaml)
        # Not among the YAML's file mounts: workers get those, and the database's password is the head's alone.
        copy_to_head(home.cluster_yaml, home.gateway_env, GATEWAY_ENV)
        for file, name in zip(settings.tls_files or (), TLS_FILES, strict=False):
            copy_to_head(home.cluster_yaml, file, f"{GATEWAY_TLS}/{name}")
        run_on_head(home.cluster_yaml, start_gateway(settings, restore=database_url is None))
    except (account.AccountUnusable, LaunchFailed, ClientError, BotoCoreError, ValueError) as error:
        _fail(str(error))
    typer.echo(f"the gateway is at {settings.api_url.format(address)}; python -m deploy.aws key makes a key for it")


@app.command("render")
def render_only(
    settings_file: SettingsFile,
    node_group: Annotated[str, typer.Option(help="Id of the security group of all machines.")] = "sg-nodes",
    head_group: Annotated[str, typer.Option(help="Id of the head's own.")] = "sg-head",
) -> None:
    """Prints the YAML that `up` gives to Ray, and asks AWS nothing."""
    typer.echo(cluster_yaml(_settings(settings_file), Groups(node_group, head_group), Path("everywhere")))


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
    try:
        run_on_head(home.cluster_yaml, f"docker exec {GATEWAY_CONTAINER} rekindle keys create {name} {scopes}")
    except LaunchFailed as error:
        _fail(str(error))


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
    home = _existing(state / settings.name)
    try:
        ray_down(home.cluster_yaml)
        if everything:
            account.wait_until_gone(settings)
            account.remove(settings)
    except (account.AccountUnusable, LaunchFailed, ClientError, BotoCoreError) as error:
        _fail(str(error))


def cluster_yaml(settings: AwsSettings, groups: Groups, everywhere: Path) -> str:
    """What `up` writes for Ray. `everywhere` is the folder that every machine gets."""
    config = render(settings, node_group=groups.nodes, head_group=groups.head, cluster_folder=str(everywhere))
    return yaml.dump(config, Dumper=_Plain, sort_keys=False, width=1000)


class _Plain(yaml.SafeDumper):
    """Without references, which a person reads badly."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


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
    home.write(home.gateway_env, env_file(gateway_environment(settings, token, database_url)))
    home.write(home.everywhere / CLUSTER_ENV, env_file(cluster_environment(settings, token)))
    home.write(home.cluster_yaml, cluster_yaml(settings, groups, home.everywhere))


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
