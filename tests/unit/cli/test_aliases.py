"""How aliases are shown, and which options make which request."""

import json

import httpx2
import pytest
from typer.testing import CliRunner

from services.cli.aliases import shown_alias, shown_role
from services.cli.main import app
from services.client import Rekindle
from services.contracts.aliases import AliasShadow, AliasSplit, AliasTarget, ModelAlias
from services.contracts.base import utc_now
from tests.unit.client.test_transport import Server

PLAIN = ModelAlias(alias="production", version=1, split=None, shadow=None, updated_at=utc_now())
SPLIT = PLAIN.model_copy(update={"split": AliasSplit(version=2, weight=0.1)})
SHADOW = PLAIN.model_copy(update={"shadow": AliasShadow(version=2)})


@pytest.mark.parametrize(
    ("alias", "text", "roles"),
    [
        (PLAIN, "production → v1", ["production", "", ""]),
        (SPLIT, "production → v1 0.9, v2 0.1", ["production (0.9)", "production (0.1)", ""]),
        (SHADOW, "production → v1, shadow v2", ["production", "production (shadow)", ""]),
    ],
)
def test_what_an_alias_refers_to(alias: ModelAlias, text: str, roles: list[str]) -> None:
    assert shown_alias(alias) == text
    assert [shown_role(alias, version) for version in (1, 2, 3)] == roles


def sent(server: Server) -> dict:
    (request,) = server.requests
    assert (request.method, request.url.path) == ("PUT", "/v1/models/flowers/aliases/production")
    return {name: value for name, value in json.loads(request.content).items() if value is not None}


def test_the_client_sends_the_whole_target_and_what_it_expects() -> None:
    server = Server(httpx2.Response(200, content=SPLIT.model_dump_json()))
    expected = AliasTarget(version=1, shadow=AliasShadow(version=2))
    with Rekindle("http://server", http=server) as rekindle:
        moved = rekindle.models.set_alias("flowers", "production", 1, split=SPLIT.split, expected=expected)
    assert moved == SPLIT
    assert sent(server) == {
        "version": 1,
        "split": {"version": 2, "weight": 0.1},
        "expected": {"version": 1, "shadow": {"version": 2}},
    }


def test_a_plain_change_is_sent_as_ever() -> None:
    server = Server(httpx2.Response(200, content=PLAIN.model_dump_json()))
    with Rekindle("http://server", http=server) as rekindle:
        rekindle.models.set_alias("flowers", "production", 1, expected_version=0)
    assert sent(server) == {"version": 1, "expected_version": 0}


@pytest.mark.parametrize("options", [["--split", "2"], ["--weight", "0.5"]])
def test_a_split_needs_both_options(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["models", "alias", "flowers", "production", "1", *options])
    assert result.exit_code == 2
    assert "--weight" in result.output
