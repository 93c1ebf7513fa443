"""The README against the code: settings, make targets, links."""

import re
from pathlib import Path

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


def test_every_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
