"""`doctor`: looks at everything that a worker needs, and says what mends what is wrong."""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from crucible_worker.cli import checks, options
from crucible_worker.engines import selftest
from crucible_worker.engines.daemon import Daemon, DaemonGoneError
from crucible_worker.engines.selftest import Control
from crucible_worker.errors import ExitCode, ExitError, TaskError
from crucible_worker.settings import Settings

EXAMPLE = """Takes no task, changes nothing, and can be run beside a worker. With --sandbox it looks at the sandboxes
instead: each control, seen from inside and from outside, on each engine.

Examples:
  crucible-worker.pyz doctor
  crucible-worker.pyz doctor --sandbox --json

Exit codes: 0 all is well (or only warnings), 1 something is not, 64 usage, 69 no engine works."""

_MARKS = {True: "pass", False: "FAIL", None: "unseen"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to look at, and how to tell."""
    parser.add_argument("--sandbox", action="store_true", help="the security self-test of the sandboxes on this host")
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    options.add_settings(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Look, and print. Raises ExitError (64)."""
    loaded = options.read_settings(args, environ)
    if args.sandbox:
        return _self_test(loaded.settings, as_json=args.json)
    examination = checks.Examination(loaded)
    found = []
    for check in examination.run():
        found.append(check)
        if not args.json:
            print(_line(check), flush=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(check) for check in found], indent=1))
    if not examination.engine_works():
        return ExitCode.NO_ENGINE
    return ExitCode.FAILED if any(check.outcome == checks.FAIL for check in found) else ExitCode.OK


def _line(check: checks.Check) -> str:
    outcome = check.outcome.upper() if check.outcome in {checks.FAIL, checks.WARN} else check.outcome
    line = f"{outcome:<5} {check.name:<18} {check.found}"
    return f"{line}\n{'':<24} -> {check.mend}" if check.mend else line


def _self_test(settings: Settings, *, as_json: bool) -> int:
    language = next((found for found in settings.languages.values() if not found.command), None)
    if language is None:
        raise ExitError(
            ExitCode.USAGE, "the self-test is written in Python; name a Python image in CRUCIBLE_LANGUAGES."
        )
    daemon = Daemon(settings.docker_host)
    results: dict[str, Sequence[Control]] = {}
    troubles: dict[str, str] = {}
    for name, runtime in settings.engines.items():
        try:
            results[name] = selftest.examine(daemon, runtime, language, settings.worker_id)
        except (TaskError, DaemonGoneError) as error:
            troubles[name] = str(error)
    daemon.close()
    print(json.dumps(_document(results, troubles), indent=1) if as_json else _table(results, troubles))
    if not results:
        return ExitCode.NO_ENGINE
    broken = troubles or any(control.holds is False for controls in results.values() for control in controls)
    return ExitCode.FAILED if broken else ExitCode.OK


def _document(results: Mapping[str, Sequence[Control]], troubles: Mapping[str, str]) -> dict[str, Any]:
    engines = {name: [dataclasses.asdict(control) for control in controls] for name, controls in results.items()}
    return {"engines": engines, "unavailable": dict(troubles)}


def _table(results: Mapping[str, Sequence[Control]], troubles: Mapping[str, str]) -> str:
    names = dict.fromkeys((control.name, control.how) for controls in results.values() for control in controls)
    lines = [f"{'CONTROL':<32} {'HOW':<8} " + " ".join(f"{engine.upper():<10}" for engine in results)]
    failures = []
    for name, how in names:
        cells = []
        for engine, controls in results.items():
            control = next((c for c in controls if (c.name, c.how) == (name, how)), None)
            cells.append(_MARKS[control.holds] if control else "-")
            if control is not None and control.holds is False:
                failures.append(f"{engine}: {name}: {control.found}")
        lines.append(f"{name:<32} {how:<8} " + " ".join(f"{cell:<10}" for cell in cells))
    lines += [""] * bool(failures or troubles) + failures
    lines += [f"{engine}: no sandbox can be had: {words}" for engine, words in troubles.items()]
    width = shutil.get_terminal_size((120, 24)).columns
    return "\n".join(line.rstrip()[: max(width, 100)] for line in lines)
