"""The README does what it says: every `bash` and `python` block is run, in order, in one folder against one stack."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.local_stack import LocalStack, clean_environment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
DEFAULT_URL = "http://127.0.0.1:8080"
BLOCK_WITHIN_S = 240


@dataclass(frozen=True)
class Block:
    """A code block that is run. Blocks without a language are for people."""

    heading: str
    language: str
    code: str


def blocks(markdown: str) -> list[Block]:
    found: list[Block] = []
    heading = ""
    pattern = re.compile(
        r"^#+ (?P<heading>[^\n]+)$|^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
    )
    for match in pattern.finditer(markdown):
        heading = match["heading"] or heading
        if match["language"] in ("bash", "python"):
            found.append(Block(heading, match["language"], match["code"]))
    return found


BLOCKS = blocks((ROOT / "README.md").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Path:
    """A folder with `images/`, as the README assumes."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "images").symlink_to(drawings)
    return folder


def test_there_are_blocks_to_run() -> None:
    assert [block.heading for block in BLOCKS] == ["By command line", "By curl", "In Python"]
    assert all(DEFAULT_URL in block.code or "rekindle" in block.code for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.heading for block in BLOCKS])
def test_the_block_runs(block: Block, stack: LocalStack, folder: Path) -> None:
    code = block.code.replace(DEFAULT_URL, stack.url)
    command = ["bash", "-euo", "pipefail", "-c", code] if block.language == "bash" else [sys.executable, "-c", code]
    environment = clean_environment()
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["REKINDLE_URL"] = stack.url
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=BLOCK_WITHIN_S
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "boat" in result.stdout
