"""The page at `/`: what `/status` knows, for people. Made here in full; its script only fetches it again."""

import base64
import datetime as dt
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from crucible_worker.observe import charts, history
from crucible_worker.observe.history import Minute
from crucible_worker.observe.masking import visible

MAX_TEXT = 120  # characters shown of one value
_KIND_CLASSES = dict(zip(history.KINDS, ("good", "bad", "warn", "none"), strict=True))
_STATUS_CLASSES = {"completed": "good", "failed": "bad", "timeout": "warn", "error": "none"}


class Page:
    """Renders the page. The template's own style and script are all that its policy lets a browser run."""

    def __init__(self) -> None:
        text = resources.files("crucible_worker.observe").joinpath("page.html").read_text(encoding="utf-8")
        self._template = Template(text)
        style, script = (_sha256(text, tag) for tag in ("style", "script"))
        self.headers: Mapping[str, str] = {
            "Content-Security-Policy": (
                f"default-src 'none'; style-src '{style}'; script-src '{script}'; connect-src 'self'; img-src data:;"
                " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            ),
            "Referrer-Policy": "no-referrer",
        }

    def render(self, state: str, status: Mapping[str, Any], minutes: Sequence[Minute], now: dt.datetime) -> bytes:
        """The page of a worker whose state is one of healthy, not ready, unhealthy; `status` is what /status says."""
        return self._template.substitute(
            title=shown(f"{status.get('worker_id', '')} is {state}"),
            body="".join(_sections(state, status, minutes, now)),
        ).encode("utf-8", "backslashreplace")


def shown(value: object) -> str:
    """Any value as text that is safe between tags and in quoted attributes, bounded, with nothing invisible in it."""
    text = "-" if value is None or value == "" else str(value)
    return escape(visible(text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"))


def lasted(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return "never"
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _sha256(text: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
    digest = hashlib.sha256((found[1] if found else "").encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _sections(state: str, status: Mapping[str, Any], minutes: Sequence[Minute], now: dt.datetime) -> Iterable[str]:
    yield _section("state", _state(state, status, now))
    yield _section("numbers", _numbers(status, minutes))
    yield _section("slots", _slots(status.get("slots", [])), "Slots")
    yield _section("engines", _engines(status.get("engines", {})), "Engines")
    yield _section("throughput", _throughput(minutes), "Tasks a minute")
    yield _section("latency", _latency(minutes), "Time a task takes")
    yield _section("verdicts", _verdicts(status.get("recent", [])), "Last verdicts")


def _section(name: str, content: str, heading: str = "") -> str:
    head = f'<h2 id="{name}-title">{heading}</h2>' if heading else ""
    label = f'aria-labelledby="{name}-title"' if heading else f'aria-label="{name}"'
    return f'<section id="{name}" {label}>{head}{content}</section>'


def _state(state: str, status: Mapping[str, Any], now: dt.datetime) -> str:
    css = {"healthy": "good", "unhealthy": "bad"}.get(state, "warn")
    reasons = "".join(f"<li>{shown(reason)}</li>" for reason in status.get("reasons", []))
    return (
        f'<h1>{shown(status.get("worker_id"))} <strong class="badge {css}">{shown(state)}</strong></h1>'
        f"<p>Version {shown(status.get('version'))}, up {lasted(status.get('uptime_seconds'))}, queue "
        f'<code>{shown(status.get("queue_url"))}</code>. As of <time datetime="{now.isoformat()}">{now:%H:%M:%S} UTC'
        f"</time>.</p>" + (f'<ul class="reasons">{reasons}</ul>' if reasons else "")
    )


def _numbers(status: Mapping[str, Any], minutes: Sequence[Minute]) -> str:
    journal, slots = status.get("journal", {}), status.get("slots", [])
    busy = sum(1 for slot in slots if slot["eval_id"] is not None)
    age = status.get("last_poll_age_seconds")
    tiles = {
        "slots in use": f"{busy} of {len(slots)}",
        "queue answered": "never" if age is None else f"{lasted(age)} ago",
        "tasks in an hour": sum(minute.total for minute in minutes),
        "to be delivered": journal.get("pending"),
        "events waiting": journal.get("events"),
        "dead letters": journal.get("dead"),
        "warm sandboxes": sum(status["warm"].values()) if "warm" in status else None,
    }
    rows = (f"<div><dt>{name}</dt><dd>{shown(value)}</dd></div>" for name, value in tiles.items() if value is not None)
    return f"<dl>{''.join(rows)}</dl>"


def _slots(slots: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (shown(s["slot"]), shown(s["doing"]), _code(s["eval_id"]), shown(s["engine"]), lasted(s["seconds"]))
        for s in slots
    ]
    return _table("slots", ("Slot", "Does", "Evaluation", "Engine", "For"), rows, "No slot is running.")


def _engines(engines: Mapping[str, Mapping[str, Any]]) -> str:
    works, broken = _badge("works", "good"), _badge("does not work", "bad")
    rows = [
        (shown(name), shown(e["runtime"]), works if e["available"] else broken, shown(e["detail"]))
        for name, e in engines.items()
    ]
    return _table("engines", ("Engine", "Runtime", "State", "Why"), rows, "No engine is configured.")


def _verdicts(recent: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (f'<time datetime="{shown(r["at"])}">{shown(r["at"][11:19])}</time>', _code(r["eval_id"]), shown(r["engine"]),
         _badge(r["status"], _STATUS_CLASSES.get(r["status"], "none")), shown(r["reason"]), lasted(r["seconds"]))
        for r in recent
    ]  # fmt: skip
    return _table("verdicts", ("At (UTC)", "Evaluation", "Engine", "Status", "Reason", "Took"), rows, "None yet.")


def _throughput(minutes: Sequence[Minute]) -> str:
    total = sum(minute.total for minute in minutes)
    label = f"{total} tasks ended in the last {len(minutes)} minutes"
    legend = "".join(f'<li class="{css}">{kind}</li>' for kind, css in _KIND_CLASSES.items())
    return charts.bars(label, [m.counts for m in minutes], _KIND_CLASSES, "") + f'<ul class="legend">{legend}</ul>'


def _latency(minutes: Sequence[Minute]) -> str:
    quantile: Callable[[float], list[float | None]] = lambda share: [m.quantile(share) for m in minutes]  # noqa: E731
    median, slow = quantile(0.5), quantile(0.95)
    last = next(
        (f"{lasted(m)} and {lasted(s)}" for m, s in zip(median[::-1], slow[::-1], strict=True) if m), "none yet"
    )
    label = f"Median and 95th percentile of the last minute with tasks: {last}"
    legend = '<li class="median">median</li><li class="slow">95th percentile</li>'
    return charts.lines(label, {"slow": slow, "median": median}, " s") + f'<ul class="legend">{legend}</ul>'


def _badge(words: object, css: str) -> str:
    return f'<span class="badge {css}">{shown(words)}</span>'


def _code(eval_id: object) -> str:
    return "-" if eval_id is None else f'<code title="{shown(eval_id)}">{shown(eval_id)}</code>'


def _table(name: str, heads: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> str:
    """A table that a keyboard can scroll where it is too wide. Cells are HTML."""
    if not rows:
        return f"<p>{empty}</p>"
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="wide" id="{name}-table" tabindex="0" role="region" aria-labelledby="{name}-title">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
