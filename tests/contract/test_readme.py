"""The README against the code: settings, make targets, links."""

import re
from pathlib import Path

import pytest

from services.runtime.settings import settings_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_settings_table_is_the_codes() -> None:
    shown = re.search(r"<!-- settings -->\n(.*)<!-- /settings -->", README, re.DOTALL)
    assert shown is not None
    assert shown[1] == settings_table(), "copy services.runtime.settings.settings_table() into the README"


def test_every_make_target_that_it_names_exists() -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "run", "test"} <= named <= targets


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        *(str(each.relative_to(ROOT)) for place in ("docs", "deploy") for each in (ROOT / place).rglob("*.md")),
    ],
)
def test_every_link_leads_to_a_file(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert links or page != "README.md"
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []
