"""Single figures beside the table of contenders: bursts, first bytes, our own time, a worker at rest and at work."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contenders import LABELS, LIMITS, READ, Cli, Crucible, Warm

from crucible_worker.embedded.server import EmbeddedQueue
from crucible_worker.engines import policy
from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.follow import Nobody

ROOT = Path(__file__).resolve().parent.parent
PYZ = ROOT / "dist" / "crucible-worker.pyz"
PYTHON = getattr(sys, "_base_executable", sys.executable)  # an operator's: without the packages of this environment
HELLO = "print('hello')"
FLOOD = "import os\nwhile True: os.write(1, b'x' * 65536)"
ROUNDS = 11
BURST = 8


@dataclass(frozen=True)
class Figure:
    """One line of the report: what, on which runtime, as measured, and what was aimed at."""

    what: str
    runtime: str
    measured: str
    aim: str = ""
    reached: bool = True


def milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def burst(url: str, image: str, runtime: str) -> Figure:
    """Eight tasks at once on eight warm sandboxes, to the last verdict, against eight parallel docker runs."""
    warm, cli = Warm(url, image, runtime), Cli(url, image, runtime)
    ours, theirs = [], []
    with ThreadPoolExecutor(BURST) as pool:
        for _ in range(5):
            ready = [warm.prepare() for _ in range(BURST)]
            ours.append(milliseconds(lambda ready=ready: list(pool.map(lambda one: warm.spend(HELLO, one), ready))))
            warm.settle()
            theirs.append(milliseconds(lambda: list(pool.map(lambda _: cli.run(HELLO), range(BURST)))))
    warm.close()
    mine, other = statistics.median(ours), statistics.median(theirs)
    words = f"{mine:.0f} ms against {other:.0f} ms: {mine / other:.2f}"
    return Figure("burst of 8 on a pool of 8, to the last verdict / 8 parallel `docker run`", runtime, words, "<= 0.25",
                  mine / other <= 0.25)  # fmt: skip


class _FirstByte(Nobody):
    """Notes when the first byte of the code's own output came."""

    def __init__(self, wanted: bytes) -> None:
        self.at = 0.0
        self._wanted = wanted
        self._seen = b""

    def heard(self, data: bytes) -> None:
        self._seen += data[:200]
        if not self.at and self._wanted in self._seen:
            self.at = time.perf_counter()


def first_byte(url: str, image: str, runtime: str) -> Figure:
    """From the frame to the first byte of output, against the same by hand: a container that reads code and runs it."""
    warm, ours, theirs = Warm(url, image, runtime), [], []
    daemon = Daemon(url)
    boot = f"print(end='R', flush=True);{READ}"
    config = policy.container_config(image=image, runtime=runtime, limits=LIMITS, labels=LABELS, boot=boot)
    for _ in range(ROUNDS):
        ready, witness = warm.prepare(), _FirstByte(b"hello")
        began = time.perf_counter()
        warm.spend("print('hello', flush=True)", ready, witness)
        ours.append((witness.at - began) * 1000)
        warm.settle()
        theirs.append(_first_byte_by_hand(daemon, config))
    warm.close()
    daemon.close()
    mine, other = statistics.median(ours), statistics.median(theirs)
    words = f"{mine:.1f} ms, {mine - other:.1f} over {other:.1f}"
    return Figure("warm, first output byte, over a prototype by hand", runtime, words, "<= 10 ms", mine - other <= 10)


def _first_byte_by_hand(daemon: Daemon, config: dict) -> float:
    container = daemon.create(f"bench-{uuid.uuid4().hex}", config)
    streams = daemon.attach(container)
    daemon.start(container)
    streams.socket.settimeout(30)
    streams.socket.recv(100)  # the R
    began = time.perf_counter()
    streams.socket.sendall(b"print('hello', flush=True)")
    streams.socket.shutdown(1)
    streams.socket.recv(100)
    taken = (time.perf_counter() - began) * 1000
    streams.close()
    daemon.remove(container)
    return taken


class _Calls:
    """CPU time that this thread spends in calls to a daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self.spent = 0.0
        self._thread = threading.get_ident()
        for name in ("create", "inspect", "attach", "start", "wait", "counters", "kill", "what_befell"):
            setattr(daemon, name, self._counted(getattr(daemon, name)))

    def _counted(self, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object) -> object:
            began = time.thread_time()
            try:
                return call(*arguments)
            finally:
                if threading.get_ident() == self._thread:
                    self.spent += time.thread_time() - began

        return counted


def own_time(url: str, image: str, runtime: str) -> list[Figure]:
    """CPU time of the slot's thread for a task, cold and warm: our own code's, and with the SDK's calls."""
    figures = []
    for kind in (Crucible, Warm):
        one, own, whole = kind(url, image, runtime), [], []
        calls = _Calls(one.daemon)
        for _ in range(ROUNDS):
            ready = one.prepare()
            began, calls.spent = time.thread_time(), 0.0
            one.spend(HELLO, ready)
            taken = time.thread_time() - began
            own.append((taken - calls.spent) * 1000)
            whole.append(taken * 1000)
            one.settle()
        one.close()
        middle = statistics.median(own)
        figures.append(
            Figure(
                f"CPU time of a slot's thread for a task, outside calls to the daemon, {one.name}",
                runtime,
                f"{middle:.1f} ms ({statistics.median(whole):.1f} with them)",
                "<= 5 ms",
                middle <= 5,
            )
        )
    return figures


def healthcheck() -> Figure:
    """The `healthcheck` process against an interpreter that does nothing; nobody listens."""
    command = [PYTHON, "-I", str(PYZ), "healthcheck", "--address", "127.0.0.1:9"]
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(milliseconds(lambda: subprocess.run(command, capture_output=True, check=False)))
        theirs.append(milliseconds(lambda: subprocess.run([PYTHON, "-I", "-c", "pass"], check=True)))
    mine, other = statistics.median(ours), statistics.median(theirs)
    words = f"{mine:.0f} ms against {other:.0f} ms: {mine / other:.1f}"
    return Figure("`healthcheck` process / `python -c pass`", "", words, "<= 2", mine / other <= 2)


@dataclass(frozen=True)
class Worker:
    """A running one: its process, and what it serves."""

    pid: int
    url: str

    def fill(self) -> None:
        """Wait for its warm sandbox."""
        while not ask(f"{self.url}/status")["warm"].get("docker/python"):
            time.sleep(0.1)


@contextmanager
def worker(queue_url: str, image: str, **settings: str) -> Iterator[Worker]:
    """The built .pyz at work, until the end of the block."""
    with tempfile.TemporaryDirectory() as state:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("CRUCIBLE_")}
        given = {
            "QUEUE_SERVICE_URL": queue_url, "EVENT_BUS_URL": "none", "HOSTNAME": f"bench-{uuid.uuid4().hex[:8]}",
            "CRUCIBLE_STATE_DIR": state, "CRUCIBLE_HEALTH_ADDRESS": "127.0.0.1:0", "CRUCIBLE_ENGINES": "docker=runc",
            "CRUCIBLE_LANGUAGES": f"python={image}",
        }  # fmt: skip
        process = subprocess.Popen(
            [PYTHON, "-I", str(PYZ), "run"], env=kept | given | settings, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        said: dict = {}
        port = 0
        while said.get("event") != "engine_available":
            said = json.loads(process.stderr.readline())
            port = said.get("health_port", port)
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        try:
            yield Worker(process.pid, f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait(60)
            drain.join(5)


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(url: str, method: str = "GET", document: object = None) -> dict:
    data = None if document is None else json.dumps(document).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=60) as answer:
        return json.load(answer)


def submit(queue: EmbeddedQueue, code: str) -> str:
    name = uuid.uuid4().hex
    ask(f"{queue.url}/tasks", "POST", {"eval_id": name, "code": code, "timeout": 30})
    return name


def settled(queue: EmbeddedQueue, name: str) -> dict:
    while ask(f"{queue.url}/tasks/{name}")["status"] not in {"completed", "failed"}:
        time.sleep(0.001)
    return ask(f"{queue.url}/tasks/{name}/result")


def whole_worker(image: str) -> list[Figure]:
    """The .pyz with the embedded queue: at rest, a task at a time, and under floods."""
    queue = EmbeddedQueue(":memory:", "127.0.0.1:0")
    queue.start()
    try:
        return [*_at_rest(queue, image), *_a_task_at_a_time(queue, image), _floods(queue, image)]
    finally:
        queue.stop()


def _at_rest(queue: EmbeddedQueue, image: str) -> list[Figure]:
    with worker(queue.url, image) as idle:
        idle.fill()
        began = _cpu_seconds(idle.pid)
        time.sleep(30)
        share = (_cpu_seconds(idle.pid) - began) / 30 * 100
        resident = _status(idle.pid, "VmRSS") / 1024
    return [
        Figure("idle worker, one core", "", f"{share:.2f} %", "< 0.5 %", share < 0.5),
        Figure("idle worker, resident memory", "", f"{resident:.0f} MB", "<= 45 MB", resident <= 45),
    ]


def _a_task_at_a_time(queue: EmbeddedQueue, image: str) -> list[Figure]:
    figures = []
    for warm in ("0", "1"):
        with worker(queue.url, image, CRUCIBLE_WARM=warm) as at_work:
            taken = []
            for _ in range(ROUNDS + 1):
                time.sleep(1)  # for the last sandbox to be gone
                if warm != "0":
                    at_work.fill()
                began = time.perf_counter()
                result = settled(queue, submit(queue, HELLO))
                taken.append((time.perf_counter() - began) * 1000)
        label = "warm" if result["warm"] else "cold"
        words = f"{statistics.median(taken[1:]):.0f} ms"
        figures.append(Figure(f"submit to verdict through the embedded queue, {label}", "runc", words))
    return figures


def _floods(queue: EmbeddedQueue, image: str) -> Figure:
    """Peak memory of a worker through which 16 sandboxes pour as much as they can; the median of three."""
    peaks, reasons = [], set()
    for _ in range(3):
        with worker(queue.url, image, CRUCIBLE_CONCURRENCY="16", CRUCIBLE_WARM="0") as flooded:
            names = [submit(queue, FLOOD) for _ in range(16)]
            reasons |= {settled(queue, name)["reason"] for name in names}
            peaks.append(_status(flooded.pid, "VmHWM") / 1024)
    peak = statistics.median(peaks)
    words = f"{peak:.0f} MB ({min(peaks):.0f}-{max(peaks):.0f}), all {', '.join(sorted(reasons))}"
    return Figure("worker's peak memory, 16 floods in flight", "runc", words, "<= 64 MB", peak <= 64)


def claims() -> Figure:
    """How many tasks a second the embedded queue hands out and takes back, over HTTP, by four callers at once."""
    with tempfile.TemporaryDirectory() as folder:
        queue = EmbeddedQueue(f"{folder}/queue.db", "127.0.0.1:0")
        queue.start()
        try:
            for _ in range(400):
                submit(queue, HELLO)

            def claim(_: int) -> None:
                task = ask(f"{queue.url}/tasks/next")
                body = {"output": {"id": task["eval_id"]}, "lease": (task.get("lease") or {}).get("id")}
                ask(f"{queue.url}/tasks/{task['eval_id']}/complete", "POST", body)

            with ThreadPoolExecutor(4) as pool:
                taken = milliseconds(lambda: list(pool.map(claim, range(400))))
        finally:
            queue.stop()
    return Figure("embedded queue, claim and complete, on disk", "", f"{400 / taken * 1000:.0f} a second")
