"""The `rekindle` command without a server: help, usage, names, and what costs time to import."""

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from typer.testing import CliRunner

from services.cli.export import find_version
from services.cli.main import COMMANDS, app
from services.cli.predict import IMAGES_PER_REQUEST
from services.cli.sources import find_images, name_of, resource_name
from services.cli.train import candidates_field, weights_field
from services.client import Rekindle
from services.contracts.base import ResourceName
from services.contracts.batch_predictions import DatasetFiles
from services.contracts.datasets import PrefixSource
from services.contracts.errors import NotFound
from services.contracts.ids import DatasetId
from services.runtime.settings import Settings
from tests.servers.local_stack import run_command

NOBODY = {"REKINDLE_URL": "http://127.0.0.1:9"}  # the discard port: nothing listens there
HEAVY = {"sqlalchemy", "fastapi", "boto3", "botocore", "ray", "tensorflow", "keras", "numpy", "alembic", "uvicorn"}


def test_help_names_every_command() -> None:
    text = run_command("--help", environment={}).stdout
    assert [name for name in COMMANDS if name not in text] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], prog_name="rekindle")
    assert result.exit_code == 0
    assert f"Usage: rekindle {command}" in result.output


@pytest.mark.parametrize("module", [
    "main", "train", "predict", "explain", "label", "labels", "export", "datasets", "jobs", "receipt", "models", "cost",
    "doctor",
])  # fmt: skip
def test_clients_commands_import_nothing_of_the_server(module: str) -> None:
    program = f"import sys, services.cli.{module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY & set(loaded) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["train"],
        ["train", "x", "--epochs", "many"],
        ["train", "x", "--parent-version", "1"],
        ["train", "x", "--parent", "m", "--rename-class", "old"],
        ["predict", "m"],
        ["explain", "m"],
        ["label", "m"],
        ["label", "m", "s3://b/x/", "--detach", "--output", "x.csv"],
        ["labels", "download", "pred_1"],
        ["export", "m"],
        ["export", "m", "--format", "pickle"],
        ["jobs", "show"],
    ],
)
def test_wrong_usage_is_exit_status_2(arguments: list[str]) -> None:
    assert run_command(*arguments, environment=NOBODY).returncode == 2


@pytest.mark.parametrize("arguments", [["jobs", "list"], ["models", "list"], ["train", "some-dataset"]])
def test_no_server_is_a_sentence_that_says_what_to_do(arguments: list[str]) -> None:
    result = run_command(*arguments, environment=NOBODY)
    assert result.returncode == 1
    assert "http://127.0.0.1:9 does not answer" in result.stderr
    assert "rekindle up" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_spec_that_cannot_be_is_refused_before_anything_is_uploaded(tmp_path: Path) -> None:
    result = run_command("train", tmp_path, "--epochs", "0", environment=NOBODY)
    assert result.returncode == 1
    assert "epochs" in result.stderr
    assert "does not answer" not in result.stderr


def test_options_win_over_the_environment() -> None:
    result = run_command("--url", "http://127.0.0.1:7", "jobs", "list", environment=NOBODY)
    assert "http://127.0.0.1:7 does not answer" in result.stderr


def test_a_key_is_made_used_once_shown_and_revoked(tmp_path: Path) -> None:
    environment = {"REKINDLE_HOME": str(tmp_path)}
    made = run_command("keys", "create", "laptop", "--scope", "train", "--scope", "read", environment=environment)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert key.startswith("rk_")
    key_id = key.split("_")[1]
    listed = run_command("keys", "list", environment=environment).stdout
    assert "laptop" in listed
    assert key.split("_")[2] not in listed
    assert run_command("keys", "revoke", key_id, environment=environment).returncode == 0
    unknown = run_command("keys", "revoke", "0" * 16, environment=environment)
    assert (unknown.returncode, "no API key" in unknown.stderr) == (1, True)


# --- names ----------------------------------------------------------------------------------------------------------


@given(st.text())
def test_any_text_gives_a_name_that_the_server_takes(text: str) -> None:
    TypeAdapter(ResourceName).validate_python(resource_name(text))


@pytest.mark.parametrize(
    ("source", "name"),
    [("s3://bucket/My Flowers/", "my-flowers"), ("/data/trash6", "trash6"), ("/data/Cats & Dogs/", "cats-dogs")],
)
def test_a_dataset_is_named_like_its_folder(source: str, name: str) -> None:
    assert name_of(source) == name


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,60}[a-z0-9]", fullmatch=True))
def test_a_name_stays_as_it_is(name: str) -> None:
    assert resource_name(name) == name


def test_weights_are_a_name_a_uri_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "w.h5"
    file.touch()
    assert weights_field("imagenet", None) == "imagenet"
    assert weights_field("s3://b/w.h5", "ab") == {"uri": "s3://b/w.h5", "sha256": "ab"}
    assert weights_field(str(file), None) == {"uri": file.as_uri(), "sha256": None}
    with pytest.raises(FileNotFoundError, match="imagenet"):
        weights_field(str(tmp_path / "missing.h5"), None)


def test_candidates_are_backbones_with_a_size_and_weights_where_they_have_them(tmp_path: Path) -> None:
    file = tmp_path / "a=b@7.h5"
    file.touch()
    assert candidates_field(["resnet50", "rekindle_tiny@32", f"mobilenet_v2@160={file}", "resnet50=s3://b/w.h5"]) == [
        {"backbone": "resnet50", "image_size": None, "weights": None},
        {"backbone": "rekindle_tiny", "image_size": 32, "weights": None},
        {"backbone": "mobilenet_v2", "image_size": 160, "weights": {"uri": file.as_uri(), "sha256": None}},
        {"backbone": "resnet50", "image_size": None, "weights": {"uri": "s3://b/w.h5", "sha256": None}},
    ]
    for wrong in ("", "@32", "resnet50@", "resnet50@big", "resnet50="):
        with pytest.raises(typer.BadParameter, match="BACKBONE"):
            candidates_field([wrong])


def test_images_to_label_are_a_uri_a_folder_or_a_dataset(tmp_path: Path) -> None:
    dataset = {"id": "ds_" + "1" * 24, "name": "pets", "source": {"type": "upload"}, "state": "ready", "layout": None}

    def answer(request: httpx2.Request) -> httpx2.Response:
        found = [dataset | {"created_at": "2026-01-01T00:00:00Z"}] if request.url.params["name"] == "pets" else []
        return httpx2.Response(200, json={"items": found, "next_cursor": None})

    with Rekindle("http://server", http=httpx2.MockTransport(answer)) as client:
        assert find_images(client, "s3://b/new/") == PrefixSource(uri="s3://b/new/")
        assert find_images(client, str(tmp_path)) == PrefixSource(uri=tmp_path.as_uri())
        assert find_images(client, "ds_" + "2" * 24) == DatasetFiles(dataset_id=DatasetId("ds_" + "2" * 24))
        assert find_images(client, "pets") == DatasetFiles(dataset_id=DatasetId("ds_" + "1" * 24))
        with pytest.raises(NotFound, match="'cats' is no folder"):
            find_images(client, "cats")


def test_a_request_has_no_more_images_than_the_server_takes() -> None:
    assert Settings.model_fields["max_images_per_request"].default >= IMAGES_PER_REQUEST


MODEL = {
    "name": "flowers",
    "latest_version": 7,
    "labels": ["rose"],
    "accuracy": 0.9,
    "aliases": [
        {"alias": "production", "version": 3, "split": None, "shadow": None, "updated_at": "2026-01-01T00:00:00Z"}
    ],
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-01T00:00:00Z",
}


@pytest.mark.parametrize(("named", "version"), [("flowers", 7), ("flowers@production", 3), ("flowers:2", 2)])
def test_an_export_is_of_the_version_that_is_named(named: str, version: int) -> None:
    with Rekindle("http://server", http=httpx2.MockTransport(lambda _: httpx2.Response(200, json=MODEL))) as client:
        assert find_version(client, named) == ("flowers", version)
        with pytest.raises(NotFound, match="its aliases are production"):
            find_version(client, "flowers@nowhere")
        for wrong in ("flowers@", "flowers:0", "flowers:1@x", ""):
            with pytest.raises(ValueError, match="names no model"):
                find_version(client, wrong)
