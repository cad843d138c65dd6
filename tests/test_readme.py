"""The README says what is true of the code. Run this file to bring its generated parts up to date."""

import re
from pathlib import Path

from crucible_worker import settings
from crucible_worker.cli.demo_command import CASES
from crucible_worker.cli.main import COMMANDS

README = Path(__file__).parent.parent / "README.md"


def settings_table() -> str:
    """Every setting as a row, in the order of its declaration."""
    rows = ["| key | environment | flag | default | what it is |", "|---|---|---|---|---|"]
    for d in settings.describe():
        env = f"`{d.env}`, `{d.env}_FILE`" if d.secret else f"`{d.env}`"
        default = f"`{d.default}`" if d.default else ""
        rows.append(f"| `{d.name}` | {env} | `{d.flag}` | {default} | {d.help} |")
    return "\n".join(rows)


def with_part(text: str, name: str, content: str) -> str:
    """A document with one generated part replaced."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(pattern, lambda found: f"{found[1]}{content}\n{found[2]}", text, flags=re.DOTALL)


def test_settings_table_is_that_of_the_code():
    text = README.read_text(encoding="utf-8")
    assert with_part(text, "settings", settings_table()) == text, "run `python tests/test_readme.py`"


def test_every_command_is_listed():
    text = README.read_text(encoding="utf-8")
    assert [name for name in COMMANDS if not re.search(rf"^\| `{name}\b", text, flags=re.MULTILINE)] == []


def test_the_recorded_demo_shows_what_the_demo_does():
    recorded = README.read_text(encoding="utf-8").split("<!-- demo -->")[1].split("<!-- /demo -->")[0]
    for engine in ("docker", "gvisor"):
        for case in CASES:
            assert re.search(rf"^    {engine} +{case.name} +\w+ +{case.reason} ", recorded, flags=re.MULTILINE)
    assert "sandboxes left behind: 0." in recorded


if __name__ == "__main__":
    README.write_text(with_part(README.read_text(encoding="utf-8"), "settings", settings_table()), encoding="utf-8")
