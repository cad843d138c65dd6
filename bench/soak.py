"""Soak: one worker, thousands of mixed tasks on both engines, a queue that keeps failing, and a count of what is left.

Needs the development environment, a Docker Engine with gVisor, and the sandbox image. Exits 1 unless every task is
settled once with the verdict it must have, no sandbox, claim or result is left, and the worker has at the end the
files and threads, and within a tenth the memory, that it had after its first hundred tasks.

    python bench/soak.py --tasks 2000
"""

import argparse
import collections
import random
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for folder in ("tests/worker", "tests/faults", "tests", ""):
    sys.path.insert(0, str(ROOT / folder))

from fault_proxy import AFTER, BEFORE, Proxy  # noqa: E402
from scene import Scene  # noqa: E402

from crucible_worker.embedded import store  # noqa: E402

WARM_TASKS = 100
PROGRAMS = {
    "exited": ("print('hello')", 20),
    "exited_nonzero": ("import sys; print('so far'); sys.exit(7)", 20),
    "signaled": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 20),
    "output_limit": ("import os\nwhile True: os.write(1, b'x' * 65536)", 60),
    "timeout": ("print('so far', flush=True)\nwhile True: pass", 1),
    "out_of_memory": ("x = []\nwhile True: x.append(bytearray(8 << 20))", 60),
}
WEIGHTS = (60, 15, 10, 5, 5, 5)
FAULTS = [
    (kind, moment, action)
    for kind in ("poll", "settle", "heartbeat")
    for moment, actions in ((BEFORE, ("drop", "503")), (AFTER, ("drop", "503", "cut", "twice")))
    for action in actions
]


def vital_signs(pid: int) -> dict[str, int]:
    """Resident memory in kB, open files and threads of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return {"rss_kb": int(status["VmRSS"].split()[0]), "files": files, "threads": int(status["Threads"])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--fault-every", type=int, default=10, metavar="N", help="one fault for so many tasks")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    dice = random.Random(args.seed)
    store.GRACE_SECONDS = 5.0
    scene = Scene()
    try:
        return soak(scene, args, dice)
    finally:
        scene.close()


def soak(scene: Scene, args: argparse.Namespace, dice: random.Random) -> int:
    settings = {
        "CRUCIBLE_ENGINES": "docker=runc,gvisor=runsc",
        "CRUCIBLE_CONCURRENCY": str(args.concurrency),
        "CRUCIBLE_OUTPUT_LIMIT": "4m",
    }
    # A first life ends by kill -9 under its tasks; the second one is measured.
    first = scene.worker(**settings)
    expected = submit(scene, dice, 8)
    first.event("processing_task_started")
    first.signal(signal.SIGKILL)
    first.exit_code()
    worker = scene.worker(**settings)
    wrong = settled(scene, expected)
    baseline, began, done = {}, time.monotonic(), len(expected)
    while done < args.tasks:
        for _ in range(max(20 // args.fault_every, 1)):
            scene.proxy.arm(*dice.choice(FAULTS), nth=dice.randint(1, 5))
        batch = submit(scene, dice, min(20, args.tasks - done))
        wrong += settled(scene, batch)
        done += len(batch)
        signs = vital_signs(worker.process.pid)
        if not baseline and done >= WARM_TASKS:
            baseline = signs
        print(f"{done:>6} tasks, {done / (time.monotonic() - began):.1f}/s, {signs}", flush=True)
    end = vital_signs(worker.process.pid)
    reasons = collections.Counter(line["reason"] for line in worker.events("task_completed_successfully"))
    code = worker.stop()
    left = []
    try:
        scene.nothing_left()
    except AssertionError as error:
        left.append(f"left behind: {error}")
    if code:
        left.append(f"exit code {code}")
    left += grown(baseline or end, end)
    injected = sum(Proxy.injected.values())
    print(f"{done} tasks, {injected} faults, verdicts {dict(reasons)}")
    print(f"after {WARM_TASKS}: {baseline}, at the end: {end}")
    for line in wrong + left:
        print(line)
    return 1 if wrong or left else 0


def submit(scene: Scene, dice: random.Random, count: int) -> dict[str, str]:
    """Put tasks into the queue. Returns the reason that each must end with."""
    kinds = dice.choices(list(PROGRAMS), WEIGHTS, k=count)
    engines = [dice.choice(("docker", "gvisor")) for _ in kinds]
    return {
        scene.submit(PROGRAMS[kind][0], timeout=PROGRAMS[kind][1], engine=engine): kind
        for kind, engine in zip(kinds, engines, strict=True)
    }


def settled(scene: Scene, expected: dict[str, str]) -> list[str]:
    """Wait until all are settled. Returns what is not as it must be."""
    results = {name: scene.result(name, 600) for name in expected}
    return [
        f"{name}: {result.get('reason')} instead of {expected[name]}: {result.get('error')}"
        for name, result in results.items()
        if result.get("reason") != expected[name]
    ]


def grown(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What the worker has more of than it may."""
    found = [f"{name} went from {before[name]} to {after[name]}" for name in ("files", "threads")
             if after[name] > before[name] + 2]  # fmt: skip
    if after["rss_kb"] > before["rss_kb"] * 1.1:
        found.append(f"memory went from {before['rss_kb']} kB to {after['rss_kb']} kB")
    return found


if __name__ == "__main__":
    sys.exit(main())
