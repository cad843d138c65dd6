"""What the documents say of the tests, settings, commands, the log, the HTTP ports and each other is so."""

import ast
import re
from pathlib import Path

import pytest

from crucible_worker.cli.main import COMMANDS, load
from crucible_worker.doctor.controls import LOOKS
from crucible_worker.doctor.selftest import STARTED
from crucible_worker.embedded import openapi
from crucible_worker.errors import ExitCode
from crucible_worker.model import Reason
from crucible_worker.observe import server
from crucible_worker.settings import describe

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PACKAGE = ROOT / "crucible_worker"
SPEAKERS = {"debug", "info", "warning", "error", "log", "on_trouble"}
NAMED = re.compile(r"`((?:[\w/]+/)?test_\w+\.py|…)(?:::(\w+))?`")


def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_every_test_that_a_page_names_exists(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    file, missing, count = "", [], 0
    for found in NAMED.finditer(text):
        file = file if found[1] == "…" else found[1]
        count += 1
        if not (ROOT / "tests" / file).is_file() or (found[2] and found[2] not in names_in(file)):
            missing.append(found[0])
    assert missing == []
    assert count == len(re.findall(r"test_\w+\.py|…::", text)) > 10, "one is written in a way that is not looked at"


def test_every_control_of_the_self_test_is_explained():
    table = (ROOT / "docs" / "security.md").read_text(encoding="utf-8").split("|---|---|---|")[1]
    first = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|"))
    wanted = [STARTED, *(name.removeprefix("tmpfs ") for name in LOOKS)]
    assert [name for name in wanted if name not in first] == []


@pytest.mark.parametrize(
    "page", ["api.md", "architecture.md", "engines.md", "operations.md", "reliability.md", "runbook.md", "security.md"]
)
def test_every_setting_and_command_that_a_page_names_exists(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    settings = {d.env for d in describe()} | {f"{d.env}_FILE" for d in describe()} | {"CRUCIBLE_CONFIG"}
    assert set(re.findall(r"\bCRUCIBLE_\w+", text)) <= settings
    assert set(re.findall(r"crucible-worker\.pyz (\w+)", text)) <= set(COMMANDS)


def events(source: str) -> set[str]:
    """The names of events in a module: first arguments of what logs, also where a variable holds them."""
    tree = ast.parse(source)
    assigned: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned.setdefault(node.targets[0].id, set()).update(texts(node.value))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            first = node.args[0]
            if name in SPEAKERS:
                found |= texts(first) | (assigned.get(first.id, set()) if isinstance(first, ast.Name) else set())
    return {name for name in found if re.fullmatch(r"[a-z]+(_[a-z]+)*", name)}


def texts(node: ast.expr) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_the_reader_sees_every_way_of_logging():
    source = """
event = "a_b"
if x: event = "c_d"
self._log.warning(event, x=1)
log("e_f")
log.info("g_h" if x else "ij")
"""
    assert events(source) == {"a_b", "c_d", "e_f", "g_h", "ij"}


def test_the_runbook_has_every_event_of_the_log_and_no_other():
    logged = set().union(*(events(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")))
    assert len(logged) > 40
    table = (DOCS / "runbook.md").read_text(encoding="utf-8").partition("## Log events")[2]
    rows = re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE)
    told = [name for row in rows for name in re.findall(r"`([a-z_]+)`", row)]
    assert sorted(told) == sorted(logged)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), anchor


def anchors(page: Path) -> list[str]:
    """What the headings of a page are linked by."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_of_a_command_that_a_page_shows_exists(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for command, rest in re.findall(r"crucible-worker\.pyz ([a-z]+)\b([^\n`|;&]*)", text):
        if command not in COMMANDS:
            continue
        _, parser = load(command)
        actions = next((a.choices for a in parser._actions if isinstance(a.choices, dict)), {})
        known = {option for each in (parser, *actions.values()) for option in each._option_string_actions}
        assert set(re.findall(r"(?<= )--[a-z-]+", rest)) <= known, command


def test_the_readme_has_every_reason_and_exit_code_and_no_other():
    reasons = readme_table("| reason |")
    assert sorted(re.findall(r"`(\w+)`", " ".join(reasons))) == sorted(Reason)
    codes = [int(code) for code in readme_table("| exit code |")]
    assert codes == sorted(value for name, value in vars(ExitCode).items() if name.isupper())


def readme_table(head: str) -> list[str]:
    """The first column of the table in the README that starts so."""
    rows = (ROOT / "README.md").read_text(encoding="utf-8").partition(head)[2].partition("\n\n")[0].splitlines()[2:]
    return [row.split("|")[1] for row in rows]


def test_every_path_is_in_the_api_document():
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    for path in ("/", *server.PATHS):
        assert f"`GET {path}`" in text
    for path, calls in openapi.document()["paths"].items():
        for method in calls.keys() & {"get", "post", "delete"}:
            assert f"`{method.upper()} {path.replace('{eval_id}', '{id}')}`" in text, (method, path)
