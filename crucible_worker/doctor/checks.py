"""Checks in their order: each with what it needs to be worth doing, and a deadline that nothing can stretch."""

import enum
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from crucible_worker.errors import ExitCode

ENGINE = "engine "  # the checks of engines are called so, with the engine's name behind it


class Status(enum.StrEnum):
    """How a check ended. `warn` is worth knowing and stops nothing; `skip` could not be looked at."""

    PASS = "pass"  # noqa: S105
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and the command or setting that mends it."""

    status: Status
    found: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One precondition. `needs` names what must not have failed; `mend` is for when it raises or takes too long."""

    name: str
    act: Callable[[], Finding]
    needs: tuple[str, ...] = ()
    seconds: float = 15.0
    mend: str = ""


def passed(found: str) -> Finding:
    """It is as it should be."""
    return Finding(Status.PASS, found)


def warned(found: str, mend: str) -> Finding:
    """It works, and may not for long."""
    return Finding(Status.WARN, found, mend)


def failed(found: str, mend: str) -> Finding:
    """It does not work."""
    return Finding(Status.FAIL, found, mend)


def skipped(why: str) -> Finding:
    """It was not looked at."""
    return Finding(Status.SKIP, why)


def examine(checks: Iterable[Check]) -> Iterator[tuple[str, Finding]]:
    """Make the checks one after the other; (name, finding) of each as it comes. Never raises for what one finds."""
    broken: set[str] = set()
    for check in checks:
        missing = [name for name in check.needs if name in broken]
        finding = skipped(f"needs '{missing[0]}'") if missing else _within(check)
        if finding.status in {Status.FAIL, Status.SKIP}:
            broken.add(check.name)
        yield check.name, finding


def exit_code(findings: Iterable[tuple[str, Finding]]) -> int:
    """What the command ends with: 69 where no engine works, 1 where anything else failed, otherwise 0."""
    found = list(findings)
    engines = [finding for name, finding in found if name.startswith(ENGINE)]
    if engines and not any(finding.status is Status.PASS for finding in engines):
        return ExitCode.NO_ENGINE
    return ExitCode.FAILED if any(finding.status is Status.FAIL for _, finding in found) else ExitCode.OK


def _within(check: Check) -> Finding:
    """Act in a thread of its own: looking up a name, for one, has no deadline."""
    findings: list[Finding] = []
    thread = threading.Thread(target=lambda: findings.append(_acted(check)), daemon=True)
    thread.start()
    thread.join(check.seconds)
    if findings:
        return findings[0]
    return failed(f"no answer within {math.ceil(check.seconds)} s", check.mend)


def _acted(check: Check) -> Finding:
    try:
        return check.act()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
        return failed(f"{error or type(error).__name__}", check.mend)
