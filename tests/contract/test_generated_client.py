"""Anybody can generate a client from the committed document, with a common generator and without warnings."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATOR = "openapi-python-client==0.29.0"


def find_uv() -> str:
    """The one that the Makefile installed, else the one on the PATH."""
    own = ROOT / ".uv" / "bin" / "uv"
    found = str(own) if own.exists() else shutil.which("uv")
    if found is None:
        pytest.fail("no uv: run `make setup`, which installs it, or put it on the PATH")
    return found


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the generated package. The generator runs in an environment of its own: it needs other versions
    of our own dependencies."""
    folder = tmp_path_factory.mktemp("generated")
    command = [find_uv(), "tool", "run", "--from", GENERATOR, "openapi-python-client", "generate"]
    document = ROOT / "docs" / "openapi" / "rekindle.json"
    result = subprocess.run(
        [*command, "--path", str(document), "--meta", "none", "--output-path", str(folder / "generated_rekindle")],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert "warning" not in output.lower(), output
    return folder


def test_every_module_of_it_can_be_imported(generated: Path) -> None:
    program = (
        "import importlib, pkgutil, generated_rekindle\n"
        "names = [m.name for m in pkgutil.walk_packages(generated_rekindle.__path__, 'generated_rekindle.')]\n"
        "print(len([importlib.import_module(name) for name in names]))"
    )
    command = [find_uv(), "run", "--no-project", "--python", sys.executable, "--with", "httpx", "--with", "attrs"]
    result = subprocess.run(
        [*command, "--with", "python-dateutil", "python", "-c", program],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=generated,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 50


def test_it_has_the_calls_of_the_main_job(generated: Path) -> None:
    api = generated / "generated_rekindle" / "api"
    calls = {file.stem for file in api.rglob("*.py")}
    assert {"create_dataset", "create_training_job", "get_training_job", "get_model_version", "predict"} <= calls
