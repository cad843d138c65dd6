"""What the documents claim to be shown by a test is shown by one that exists."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
REFERENCE = re.compile(r"`([\w/]*test_\w+\.py)(?:::(test_\w+))?`")


@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_every_test_that_is_named_exists(page):
    found = REFERENCE.findall((DOCS / page).read_text(encoding="utf-8"))
    assert len(found) > 5
    for file, name in found:
        source = (TESTS / file).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in source, f"{file}::{name}"


LOGGED = re.compile(r"""(?:log\.(?:info|warning|error|debug)|on_trouble)\(\s*"([a-z_]+)"|\bevent = "([a-z_]+)\"""")


def test_every_event_in_the_log_is_in_the_runbook():
    sources = (DOCS.parent / "crucible_worker").rglob("*.py")
    found = {a or b for path in sources for a, b in LOGGED.findall(path.read_text(encoding="utf-8"))}
    assert len(found) > 40
    told = set(re.findall(r"`([a-z_]+)`", (DOCS / "runbook.md").read_text(encoding="utf-8")))
    assert found - told == set()
