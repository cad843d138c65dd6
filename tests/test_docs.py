"""What the documents say of the tests, the log, the HTTP ports and each other is so."""

import ast
import re
from pathlib import Path

import pytest

from crucible_worker.embedded import openapi
from crucible_worker.observe import server

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
PACKAGE = TESTS.parent / "crucible_worker"
SPEAKERS = {"debug", "info", "warning", "error", "log", "on_trouble"}
REFERENCE = re.compile(r"`([\w/]*test_\w+\.py)(?:::(test_\w+))?`")


@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_every_test_that_is_named_exists(page):
    found = REFERENCE.findall((DOCS / page).read_text(encoding="utf-8"))
    assert len(found) > 5
    for file, name in found:
        source = (TESTS / file).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in source, f"{file}::{name}"


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


@pytest.mark.parametrize("page", [*DOCS.glob("*.md"), DOCS.parent / "README.md"], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_path_is_in_the_api_document():
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    for path in ("/", *server.PATHS):
        assert f"`GET {path}`" in text
    for path, calls in openapi.document()["paths"].items():
        for method in calls.keys() & {"get", "post", "delete"}:
            assert f"`{method.upper()} {path.replace('{eval_id}', '{id}')}`" in text, (method, path)
