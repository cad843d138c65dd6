"""`doctor`: what keeps a worker from working on this host, and whether its sandboxes hold."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from functools import partial
from urllib.parse import urlsplit

from crucible_worker.cli import composition, options
from crucible_worker.doctor import engine, selftest
from crucible_worker.doctor.checks import Check, Finding, Status, examine, exit_code, passed
from crucible_worker.doctor.controls import Control
from crucible_worker.doctor.preconditions import preconditions
from crucible_worker.engines.daemon import Daemon, DaemonGoneError
from crucible_worker.errors import ExitCode, ExitError, TaskError
from crucible_worker.observe.masking import Mask, shorten
from crucible_worker.secret import without_password
from crucible_worker.settings import Loaded, Settings

EXAMPLE = """Run it as the worker's user, with the worker's settings. It claims no task, publishes no event and leaves
nothing behind; a worker may run beside it. Every check has a deadline, so that a hung engine or queue shows as one.
A check that rests on one that failed is skipped.

With --sandbox it tests the sandboxes instead: a probe tries to get out of one on each engine while this process looks
at it from outside. docs/security.md explains each control.

Examples:
  crucible-worker.pyz doctor
  QUEUE_SERVICE_URL=https://queue:8443 API_KEY_FILE=key crucible-worker.pyz doctor --json
  crucible-worker.pyz doctor --sandbox

Exit codes: 0 all is well (warnings included), 1 a check or a control failed, 64 usage, 69 no engine works."""

MARKS = {Status.PASS: "ok", Status.WARN: "WARN", Status.FAIL: "FAIL", Status.SKIP: "-"}
SELFTEST_SECONDS = 120.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to look at, and how to tell it."""
    parser.add_argument("--sandbox", action="store_true", help="test the sandboxes' security on each engine instead")
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    options.add_settings(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Look, tell, and return the worst. Raises ExitError (64 or 69)."""
    loaded = options.read_settings(args, environ)
    mask = _mask(loaded.settings, environ)
    labels = selftest.labels_of(loaded.settings.worker_id)
    try:
        if args.sandbox:
            return _sandboxes(loaded.settings, labels, mask, as_json=args.json)
        return _host(loaded, labels, mask, as_json=args.json)
    except KeyboardInterrupt:
        with suppress(DaemonGoneError, TaskError):
            engine.swept(loaded.settings.docker_host, labels)
        raise


def _host(loaded: Loaded, labels: Mapping[str, str], mask: Callable[[str], str], *, as_json: bool) -> int:
    findings: list[tuple[str, Finding]] = []
    fleet = composition.fleet(loaded.settings, labels["crucible.boot"])
    for name, finding in examine(preconditions(loaded, fleet, labels, sys.argv[0])):
        shown = Finding(finding.status, mask(finding.found), mask(finding.mend) if _matters(finding) else "")
        findings.append((name, shown))
        if not as_json:
            _tell(name, shown)
    code = exit_code(findings)
    if as_json:
        checks = [{"name": name, **dataclasses.asdict(finding)} for name, finding in findings]
        print(json.dumps({"ok": code == ExitCode.OK, "exit_code": code, "checks": checks}))
    else:
        print(_summary([(name, finding.status) for name, finding in findings]))
    return code


def _tell(name: str, finding: Finding) -> None:
    print(f"{MARKS[finding.status]:<5} {name:<18} {finding.found}", flush=True)
    if finding.mend:
        print(f"{'':<5} {'':<18} -> {finding.mend}", flush=True)


def _matters(finding: Finding) -> bool:
    return finding.status in {Status.FAIL, Status.WARN}


def _summary(found: list[tuple[str, Status]]) -> str:
    named = {kind: ", ".join(name for name, status in found if status is kind) for kind in (Status.FAIL, Status.WARN)}
    if named[Status.FAIL]:
        return f"\nNot well: {named[Status.FAIL]}."
    return "\nAll is well" + (f", with a warning: {named[Status.WARN]}." if named[Status.WARN] else ".")


def _sandboxes(settings: Settings, labels: Mapping[str, str], mask: Callable[[str], str], *, as_json: bool) -> int:
    language = next((one for one in settings.languages.values() if not one.command), None)
    if language is None:
        raise ExitError(ExitCode.USAGE, "the self-test is a Python program; add a python image to CRUCIBLE_LANGUAGES.")
    try:
        with closing(Daemon(settings.docker_host, engine.CALL_SECONDS)) as daemon:
            daemon.version()
    except (DaemonGoneError, TaskError) as error:
        raise ExitError(ExitCode.NO_ENGINE, f"{error}. 'doctor' says what to do.") from error
    found: dict[str, list[Control]] = {}
    secrets = frozenset(filter(None, [settings.api_key.reveal()]))

    def test(name: str, runtime: str) -> Finding:
        with closing(Daemon(settings.docker_host, SELFTEST_SECONDS / 4)) as daemon:
            found[name] = selftest.examine(daemon, runtime, language, settings.limits(), labels, secrets)
        return passed(name)

    checks = [
        Check(name, partial(test, name, runtime), (), SELFTEST_SECONDS) for name, runtime in settings.engines.items()
    ]
    for name, finding in examine(checks):
        if finding.status is Status.FAIL:
            found[name] = [Control(selftest.STARTED, Status.FAIL, "outside", finding.found)]
            with suppress(DaemonGoneError, TaskError):
                engine.swept(settings.docker_host, labels)
    shown = {name: [dataclasses.replace(c, found=mask(c.found)) for c in controls] for name, controls in found.items()}
    code = _verdict(shown)
    if as_json:
        documents = {name: [dataclasses.asdict(control) for control in controls] for name, controls in shown.items()}
        print(json.dumps({"ok": code == ExitCode.OK, "exit_code": code, "engines": documents}))
    else:
        print(table(shown))
    return code


def _verdict(shown: Mapping[str, list[Control]]) -> int:
    """69 where no sandbox could be started at all, 1 where a control does not hold."""
    if not any(len(controls) > 1 for controls in shown.values()):
        return ExitCode.NO_ENGINE
    failures = [control for controls in shown.values() for control in controls if control.status is Status.FAIL]
    return ExitCode.FAILED if failures else ExitCode.OK


def table(shown: Mapping[str, list[Control]]) -> str:
    """A row for each control and a column for each engine; below, what was found where one does not hold."""
    names = list(dict.fromkeys(control.name for controls in shown.values() for control in controls))
    by_name = {engine: {control.name: control for control in controls} for engine, controls in shown.items()}
    rows = [f"{'CONTROL':<24}" + "".join(f"{engine.upper():<18}" for engine in shown)]
    for name in names:
        cells = [_cell(controls.get(name)) for controls in by_name.values()]
        rows.append(f"{name:<24}" + "".join(f"{cell:<18}" for cell in cells))
    broken = [(engine, c) for engine, controls in shown.items() for c in controls if c.status is Status.FAIL]
    rows += ["", *(f"FAIL {engine}, {control.name}: {control.found}" for engine, control in broken)]
    rows.append(f"{len(broken)} do not hold." if broken else "Every control holds.")
    return "\n".join(row.rstrip() for row in rows)


def _cell(control: Control | None) -> str:
    return "-" if control is None else f"{MARKS[control.status]} ({control.how})".replace(" (-)", "")


def _mask(settings: Settings, environ: Mapping[str, str]) -> Callable[[str], str]:
    """Shows a text on one line, without secrets and without what would move a terminal's cursor."""
    urls = [settings.event_bus_url, *(value for name, value in environ.items() if name.lower().endswith("_proxy"))]
    secrets = {settings.api_key.reveal(), *(_password(url) for url in urls)} - {""}
    hide = Mask(lambda: secrets)

    def shown(text: str) -> str:
        line = " ".join(without_password(hide(text)).split())
        return shorten("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line))

    return shown


def _password(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:
        return ""
