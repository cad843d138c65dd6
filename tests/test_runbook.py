"""The runbook knows every line that the worker can log, and docs/api.md every path that it serves."""

import ast
import re
from pathlib import Path

from crucible_worker.embedded import openapi
from crucible_worker.observe.server import _PATHS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "crucible_worker"
SPEAKERS = {"debug", "info", "warning", "error", "log", "on_trouble", "_on_trouble"}


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
    return {name for name in found if re.fullmatch(r"[a-z]+(_[a-z]+)+", name)}


def texts(node: ast.expr) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def logged() -> set[str]:
    return set().union(*(events(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")))


def described() -> set[str]:
    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE))


def test_the_reader_sees_every_way_of_logging():
    source = (
        'event = "a_b"\nif x: event = "c_d"\nself._log.warning(event, x=1)\nlog("e_f")\nlog.info("g_h" if x else "i_j")'
    )
    assert events(source) == {"a_b", "c_d", "e_f", "g_h", "i_j"}
    assert len(logged()) > 30


def test_every_event_is_in_the_runbook_and_no_other():
    assert sorted(logged() - described()) == []
    assert sorted(described() - logged()) == []


def test_every_link_within_the_docs_leads_somewhere():
    for path in (*ROOT.glob("docs/*.md"), ROOT / "README.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} points to {target}"


def test_every_path_is_in_the_api_document():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for path in ("/", *_PATHS):
        assert f"`GET {path}`" in text
    for path, calls in openapi.document()["paths"].items():
        for method in calls.keys() & {"get", "post", "delete"}:
            assert f"`{method.upper()} {path.replace('{eval_id}', '{id}')}`" in text, (method, path)
