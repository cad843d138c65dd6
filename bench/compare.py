"""Sandboxes side by side: the same programs, image and limits, interleaved in one run; medians, spread and ratios.

Needs a Docker Engine with runc and runsc, and an image that every contender can work with (Python, a shell, coreutils).
`./build.sh bench` provides both. Writes RESULTS.md and results.svg beside this file; exits 1 where ours failed.

    python bench/compare.py --image crucible-bench:python --peers build/peers/bin/python --rounds 15
"""

import argparse
import datetime as dt
import os
import platform
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import chart
import figures
from contenders import Cli, Contender, Crucible, Lean, Peer, Sample, Sdk, Warm
from figures import Figure
from humaneval import problems
from humaneval import program as solved

from crucible_worker import __version__
from crucible_worker.engines.daemon import Daemon

HERE = Path(__file__).parent
BASELINE = Cli.name
PROGRAMS = {
    "hello": "print('hello')",
    "1 MB of output": "import sys; sys.stdout.write('x' * 99 + '\\n'); sys.stdout.write(('y' * 99 + '\\n') * 10_485)",
    "HumanEval": "",
    "imports": "import asyncio, dataclasses, decimal, json, re, typing, unittest; print('done')",
}
PEERS = ("epicbox2", "llm-sandbox", "autogen-ext", "tako-vm")
RUNTIMES = ("runc", "runsc")
LANES = (1, 2, 4, 8)


@dataclass
class Table:
    """Samples in milliseconds by runtime, program and contender; and what did not work, in its own words."""

    samples: dict[tuple[str, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    throughput: dict[tuple[str, int, str], float] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)


def contenders(url: str, image: str, runtime: str, peers: Path | None) -> list[Contender]:
    ours: list[Contender] = [kind(url, image, runtime) for kind in (Warm, Lean, Crucible, Cli, Sdk)]
    return ours + [Peer(name, peers, image, runtime) for name in PEERS if peers is not None]


def measure(table: Table, runtime: str, present: Sequence[Contender], rounds: int, dice: random.Random) -> None:
    """One sample of each program by each contender a round, in changing order; the first round is not counted."""
    for number in range(rounds + 1):
        cases = [(program, contender) for program in PROGRAMS for contender in present]
        dice.shuffle(cases)
        for program, contender in cases:
            if (runtime, contender.name) in table.failures:
                continue
            try:
                sample = contender.run(PROGRAMS[program])
                contender.settle()
            except RuntimeError as error:
                table.failures[runtime, contender.name] = str(error)
                continue
            if number:
                table.samples[runtime, program, contender.name].append(sample.ms)
        print(f"{runtime}: round {number} of {rounds}", file=sys.stderr, flush=True)


def throughput(table: Table, runtime: str, present: Sequence[Contender], each: int) -> None:
    """Tasks a second with 1, 2, 4 and 8 at once."""
    for lanes in LANES:
        for contender in present:
            with ThreadPoolExecutor(lanes) as pool:
                began = time.perf_counter()
                done: list[Sample] = list(pool.map(contender.run, [PROGRAMS["hello"]] * (each * lanes)))
                contender.settle()
            table.throughput[runtime, lanes, contender.name] = len(done) / (time.perf_counter() - began)


def spread(values: list[float]) -> str:
    """Median, with the quartiles behind it."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:.0f} ({low:.0f}-{high:.0f})"


def latency_rows(table: Table, runtime: str) -> list[str]:
    names = dict.fromkeys(name for at, _, name in table.samples if at == runtime)
    rows = [f"| {runtime} | " + " | ".join(PROGRAMS) + " | hello / docker run |", "|---" * (len(PROGRAMS) + 2) + "|"]
    base = statistics.median(table.samples[runtime, "hello", BASELINE])
    for name in names:
        cells = [spread(values) if (values := table.samples[runtime, program, name]) else "-" for program in PROGRAMS]
        hello = table.samples[runtime, "hello", name]
        ratio = f"{statistics.median(hello) / base:.2f}" if hello else "-"
        rows.append(f"| {name} | {' | '.join(cells)} | {ratio} |")
    for (at, name), why in table.failures.items():
        if at == runtime:
            rows.append(f"| {name} | {' | '.join('-' for _ in PROGRAMS)} | did not run: {why.splitlines()[0]} |")
    return rows


def throughput_rows(table: Table) -> list[str]:
    rows = ["| tasks/s | " + " | ".join(f"{lanes} at once" for lanes in LANES) + " |", "|---" * (len(LANES) + 1) + "|"]
    for runtime, name in dict.fromkeys((runtime, name) for runtime, _, name in table.throughput):
        cells = (f"{table.throughput[runtime, lanes, name]:.1f}" for lanes in LANES)
        rows.append(f"| {runtime}, {name} | {' | '.join(cells)} |")
    return rows


def ratios(table: Table, runtime: str) -> list[Figure]:
    """What was aimed at in ratios to `docker run` and to the SDK by hand."""

    def median(name: str) -> float:
        return statistics.median(table.samples[runtime, "hello", name])

    cold = 0.80 if runtime == "runc" else 0.85
    aims = {Warm.name: 0.15 if runtime == "runc" else 0.18, Crucible.name: cold, Lean.name: cold}
    found = []
    for name, aim in aims.items():
        ratio = median(name) / median(BASELINE)
        found.append(Figure(f"hello, {name} / `docker run`", runtime, f"{ratio:.2f}", f"<= {aim:.2f}", ratio <= aim))
    best = {
        name: max((rate for (at, _, who), rate in table.throughput.items() if (at, who) == (runtime, name)), default=0)
        for name in (Crucible.name, Lean.name, Warm.name)
    }
    theirs = table.throughput.get((runtime, LANES[-1], Sdk.name))
    for name, rate in best.items() if theirs else ():
        ratio = rate / theirs
        what = f"tasks a second, {name}, at the best concurrency / 8 threads of the SDK"
        found.append(Figure(what, runtime, f"{rate:.1f} against {theirs:.1f}: {ratio:.2f}", ">= 1.0", ratio >= 1))
    return found


def figure_rows(table: Table) -> list[str]:
    rows = ["| what | runtime | measured | aimed at | |", "|---|---|---|---|---|"]
    return rows + [
        f"| {f.what} | {f.runtime} | {f.measured} | {f.aim} | {('yes' if f.reached else 'no') if f.aim else ''} |"
        for f in table.figures
    ]


def report(table: Table, facts: Mapping[str, str]) -> str:
    lines = [
        "# Results",
        "",
        "Milliseconds from the call to the result: median (quartiles). Ours is the verdict; the removal goes on beside",
        "the next task, and the others have no result before theirs. In the tasks a second all of it is counted.",
        "",
    ]
    lines += [f"- {what}: {value}" for what, value in facts.items()]
    lines += ["", "![Time to run hello, by runtime](results.svg)", ""]
    for runtime in RUNTIMES:
        if any(at == runtime for at, _, _ in table.samples):
            lines += [*latency_rows(table, runtime), ""]
    lines += [*throughput_rows(table), "", *figure_rows(table), ""]
    return "\n".join(lines)


def facts(daemon: Daemon, rounds: int) -> dict[str, str]:
    version, set_up = daemon.version(), daemon.info()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPUs, {memory:.0f} GiB, Linux {platform.release()}, {platform.machine()}",
        "engine": f"Docker {version['Version']}, cgroup v{set_up.get('CgroupVersion', '?')}, {set_up.get('Driver')}",
        "python": platform.python_version(),
        "crucible-worker": __version__,
        "command": f"./build.sh bench --rounds {rounds}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True)
    parser.add_argument("--peers", type=Path, help="the Python of the environment that has the other sandboxes")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--each", type=int, default=6, help="tasks a lane in the throughput rows; 0 leaves them out")
    options = parser.parse_args()
    url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    problem = problems(11)[10]
    PROGRAMS["HumanEval"] = solved(problem, problem["canonical_solution"])
    table, dice, daemon = Table(), random.Random(1), Daemon(url)
    for runtime in RUNTIMES:
        present = contenders(url, options.image, runtime, options.peers)
        try:
            measure(table, runtime, present, options.rounds, dice)
            if options.each:
                throughput(table, runtime, [one for one in present if not isinstance(one, Peer)], options.each)
            table.figures += ratios(table, runtime)
            table.figures.append(figures.first_byte(url, options.image, runtime))
            table.figures += figures.own_time(url, options.image, runtime)
            table.figures.append(figures.burst(url, options.image, runtime))
        finally:
            for contender in present:
                contender.close()
    table.figures += [figures.healthcheck(), *figures.whole_worker(options.image), figures.claims()]
    text = report(table, facts(daemon, options.rounds))
    (HERE / "RESULTS.md").write_text(text)
    medians = {
        (runtime, name): statistics.median(values)
        for (runtime, program, name), values in table.samples.items()
        if program == "hello"
    }
    (HERE / "results.svg").write_text(chart.bars(medians, "Milliseconds from a program to its result (hello)"))
    print(text)
    return 1 if any(name.startswith("crucible") for _, name in table.failures) else 0


if __name__ == "__main__":
    sys.exit(main())
