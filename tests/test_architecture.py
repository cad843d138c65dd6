"""Which room may import what. Read from the source, so that an import inside a function counts too."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import crucible_worker

PACKAGE = "crucible_worker"
ROOT = Path(crucible_worker.__file__).parent
ADAPTERS = ("queues", "engines", "events", "embedded", "observe")
LEAVES = {"model", "errors", "settings", "readers", "secret"}
COSTLY = {"docker", "structlog", "prometheus_client", "redis"}


@dataclass(frozen=True)
class Module:
    """One source file. `name` and the names in `imports` are dotted; ours are without the package's own name."""

    name: str
    imports: frozenset[str]
    eager: frozenset[str]

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    def ours(self) -> set[str]:
        """Rooms and top-level modules of ours that it imports, but for its own room."""
        found = {name.split(".")[1] for name in self.imports if name.startswith(f"{PACKAGE}.")}
        return found - {self.room}

    def uses(self, library: str) -> bool:
        return any(name == library or name.startswith(f"{library}.") for name in self.imports)


def imported(nodes, package: str) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def read(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ".".join([PACKAGE, *parts[:-1]])
    return Module(
        ".".join(parts),
        frozenset(imported(ast.walk(tree), package)),
        frozenset(imported(tree.body, package)),
    )


MODULES = [read(path) for path in sorted(ROOT.rglob("*.py"))]


def each(*rooms: str):
    chosen = [module for module in MODULES if not rooms or module.room in rooms]
    return pytest.mark.parametrize("module", chosen, ids=lambda module: module.name)


def test_the_reader_sees_every_kind_of_import():
    tree = ast.parse("import a.b\ndef f():\n    from . import c\n    from ..d import e\n    from f.g import h\n")
    found = imported(ast.walk(tree), "p.q")
    assert found >= {"a.b", "p.q.c", "p.d.e", "f.g.h"}


@each("model")
def test_the_vocabulary_imports_nothing_of_ours(module):
    assert module.ours() == set()


@each("errors", "secret", "readers", "settings", "transport", "backoff", "vitals", "outbox", "supervisor")
def test_leaves_import_only_leaves(module):
    assert module.ours() <= LEAVES | {"__version__"}


@each(*ADAPTERS)
def test_adapters_import_the_vocabulary_and_their_own_room(module):
    allowed = LEAVES | {"__version__"}
    if module.room in {"queues", "events"}:
        allowed |= {"transport"}
    assert module.ours() <= allowed


@each(
    "worker", "evaluation", "settlement", "leases", "recovery", "admission", "delivery", "lifecycle", "journal",
    "statefile", "transcript", "livelogs", "backlog", "vitals", "outbox", "backoff", "supervisor",
)  # fmt: skip
def test_the_core_knows_no_adapter(module):
    assert not module.ours() & {*ADAPTERS, "transport", "cli"}


@each()
def test_nothing_imports_the_command_line(module):
    if module.room not in {"cli", "__main__"}:
        assert "cli" not in module.ours()


@each("doctor")
def test_the_doctor_knows_the_adapters_and_is_known_by_the_command_line_only(module):
    assert not module.ours() & {"cli", "worker", "embedded", "journal", "observe"}


@each()
def test_only_the_command_line_asks_the_doctor(module):
    if module.room not in {"cli", "doctor"}:
        assert "doctor" not in module.ours()


DOORS = {
    "docker": {"engines"},
    "argparse": {"cli"},
    "urllib.request": {"transport"},
    "http.client": {"transport", "cli.healthcheck_command"},
    "http.server": {"observe", "embedded"},
    "structlog": {"observe.logs"},
    "prometheus_client": {"observe.metrics"},
    "redis": {"events", "queues"},
    "sqlite3": {"journal", "statefile", "embedded"},
    "signal": {"lifecycle", "cli", "engines", "doctor.probe"},
    "logging": set(),
    "requests": {"engines"},
    "asyncio": set(),
}


@pytest.mark.parametrize("library", DOORS)
def test_each_outside_thing_has_its_doors(library):
    users = {module.name for module in MODULES if module.uses(library)}
    strangers = {name for name in users if not DOORS[library] & {name, name.partition(".")[0]}}
    assert not strangers


@each("embedded", "queues", "settings", "model", "errors", "worker", "journal", "delivery", "transport")
def test_these_rooms_do_without_costly_libraries(module):
    roots = {name.partition(".")[0] for name in module.imports}
    assert not roots & (COSTLY - {"redis"})


@each()
def test_redis_is_imported_only_where_it_is_used(module):
    assert not any(name.partition(".")[0] == "redis" for name in module.eager)


@each()
def test_no_name_hides_one_of_the_standard_library(module):
    if "." not in module.name:
        assert module.name not in sys.stdlib_module_names


def _works_at_import(node: ast.stmt) -> bool:
    """Whether a statement at the top of a module acts rather than defines."""
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant)
    return isinstance(node, ast.For | ast.While | ast.With | ast.Delete | ast.Global)


@each()
def test_importing_does_no_work(module):
    # boot is the program inside a sandbox: it is not imported but run.
    if module.name in {"__main__", "engines.boot"}:
        return
    tree = ast.parse(ROOT.joinpath(*module.name.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
    assert not [node.lineno for node in tree.body if _works_at_import(node)]


def test_the_command_line_starts_without_costly_libraries():
    code = (
        "import sys; from crucible_worker.cli.main import main; main(['version']); main(['--help']);"
        f"sys.exit(', '.join({COSTLY!r} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
