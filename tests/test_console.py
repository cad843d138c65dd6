"""Commands in the documents are run, and say what stands under them."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WORKER = f"{sys.executable} -m crucible_worker"
# What differs from run to run and from host to host.
VARIES = {
    r"\b\d+\.\d+ s\b": "SECONDS",
    r"Docker \S+ at \S+": "DOCKER",
    r"http://127\.0\.0\.1:\d+": "URL",
    r"process \d+": "PROCESS",
    r" +": " ",
}


@dataclass(frozen=True)
class Claim:
    page: str
    command: str
    output: str


def claims(page: str, text: str) -> list[Claim]:
    """Every `$ command` of an indented block, with the lines up to the next one or the block's end."""
    found = []
    for block in re.findall(r"(?:^    .*\n|^[ ]*\n)+", text, flags=re.MULTILINE):
        for part in re.split(r"^    \$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append(Claim(page, command.partition(" #")[0], re.sub(r"^    ", "", output, flags=re.MULTILINE)))
    return found


def same(text: str) -> str:
    for pattern, name in VARIES.items():
        text = re.sub(pattern, name, text)
    return "\n".join(line.strip() for line in text.strip().splitlines())


def test_the_reader_finds_commands_and_what_they_say():
    text = "Words\n\n    $ one   # why\n    a\n\n    b\n    $ two\n\nWords\n\n    three\n"
    assert [(c.command.strip(), same(c.output)) for c in claims("x", text)] == [("one", "a\n\nb"), ("two", "")]


CLAIMS = [claim for page in PAGES for claim in claims(page.name, page.read_text(encoding="utf-8"))]


@pytest.mark.engine
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.page}: {claim.command}")
def test_a_command_says_what_stands_under_it(claim, daemon, sandbox_image, engine_runtime, tmp_path):
    engine_runtime("runsc")
    command = re.sub(r"\./build\.sh (?=demo)|(?:\./)?crucible-worker\.pyz ", f"{WORKER} ", claim.command)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CRUCIBLE_")}
    environ |= {"PYTHONPATH": str(ROOT), "CRUCIBLE_LANGUAGES": f"python={sandbox_image}"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=240,
    )  # fmt: skip
    assert same(done.stdout) == same(claim.output)


def test_there_are_claims():
    assert len(CLAIMS) >= 3
