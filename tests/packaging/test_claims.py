"""Every command of the documents that claims an output has it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
# What is another at every run, or on every host.
CHANGES = (r"\d+\.\d+(?= s\b)", r"(?<=process )\d+", r"(?<=127\.0\.0\.1:)\d+", r"(?<=Docker )\S+ at \S+")


def claims() -> list[tuple[str, str]]:
    """Commands with what they are said to print."""
    found = []
    for page in PAGES:
        for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            text = re.sub(r"^    ", "", block, flags=re.MULTILINE)
            found += re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", text, flags=re.MULTILINE)
    return found


def steady(text: str) -> str:
    for change in CHANGES:
        text = re.sub(change, "…", text)
    return re.sub(r" +", " ", text.strip())


@pytest.mark.engine
@pytest.mark.parametrize(("command", "output"), claims(), ids=lambda text: text[:40])
def test_a_command_prints_what_a_page_says_and_leaves_nothing(
    pyz, daemon, sandbox_image, engine_runtime, tmp_path, command, output
):
    engine_runtime("runsc")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    (tmp_path / "crucible-worker.pyz").symlink_to(pyz)
    kept = {name: os.environ[name] for name in ("HOME", "DOCKER_HOST") if name in os.environ}
    environment = kept | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "CRUCIBLE_LANGUAGES": f"python={sandbox_image}",
        "SHIV_ROOT": str(tmp_path / "unpacked"), "HOSTNAME": f"test-{tmp_path.name}",
    }  # fmt: skip
    together = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, text=True, timeout=120, **together)
    assert steady(done.stdout) == steady(output)
    assert daemon.containers({"crucible.worker": f"test-{tmp_path.name}"}) == []


def test_the_pages_claim_something():
    assert len(claims()) >= 3
