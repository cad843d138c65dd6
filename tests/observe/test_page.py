"""The status page: what it says, that nothing of a task can speak through it, and what a real browser makes of it.

Run this file to renew the pictures in docs/.
"""

import datetime as dt
import html
import itertools
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
from chromium import Chromium
from hypothesis import given
from hypothesis import strategies as st

from crucible_worker.model import Reason
from crucible_worker.observe import charts, history
from crucible_worker.observe.history import History
from crucible_worker.observe.page import Page, lasted, shown
from crucible_worker.observe.server import HealthReport, HealthServer

NOW = dt.datetime(2026, 1, 31, 12, 0, 0, tzinfo=dt.UTC)
HOSTILE = (
    "<script>window.hacked = 1</script>",
    '"><img src=http://203.0.113.9/x onerror="window.hacked = 1">',
    "</main></section></table><style>body{display:none}</style>",
    "javascript:window.hacked=1//\u202e\x1b[2J\ud800 $body ${title}",
    "</title><svg onload=window.hacked=1>" + "x" * 5000,
)


def status(eval_ids=("humaneval-17/3",)) -> dict:
    """What /status says of a worker that has seen something."""
    recent = [
        {
            "eval_id": eval_id,
            "engine": "gvisor",
            "status": status,
            "reason": reason,
            "seconds": 0.31,
            "at": NOW.isoformat(),
        }
        for eval_id, (status, reason) in zip(
            itertools.cycle(eval_ids),
            [("completed", "exited"), ("failed", "out_of_memory"), ("timeout", "timeout"), ("failed", "engine_error")],
            strict=False,
        )
    ]
    return {
        "worker_id": "worker-1", "version": "1.0", "queue_url": "http://queue:8081", "uptime_seconds": 93784,
        "last_poll_age_seconds": 2.5, "reasons": ["the queue cannot be reached"],
        "engines": {
            "docker": {"runtime": "runc", "available": True, "detail": ""},
            "gvisor": {"runtime": "runsc", "available": False, "detail": f"its canary said {eval_ids[0]}"},
        },
        "slots": [
            {"slot": 1, "doing": "running", "seconds": 12.3, "eval_id": eval_ids[0], "engine": eval_ids[-1]},
            {"slot": 2, "doing": "polling", "seconds": 3.0, "eval_id": None, "engine": None},
        ],
        "journal": {"claimed": 1, "pending": 2, "events": 3, "dead": 0}, "recent": recent,
        "warm": {"docker/python": 2, "gvisor/python": 1},
    }  # fmt: skip


def past(minutes: int = 60) -> History:
    """An hour in which something happened in most minutes."""
    now = [0.0]
    found = History(lambda: now[0])
    for minute in range(minutes):
        now[0] = minute * 60.0
        for n in range(minute * 7 % 11 if minute % 13 else 0):
            found.add(list(Reason)[n % 5], 0.2 + (minute * n % 17) / 5)
    return found


def page(document=None, minutes=None) -> str:
    return Page().render("not ready", document or status(), minutes or past().minutes(), NOW).decode()


class Reader(HTMLParser):
    """Tags that are opened and not closed, attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_it_says_what_the_status_says():
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page())).split())
    for words in ("worker-1", "not ready", "1 d 2 h", "the queue cannot be reached", "humaneval-17/3", "12 s",
                  "does not work", "out_of_memory", "1 of 2", "2.5 s ago", "warm sandboxes 3"):  # fmt: skip
        assert words in text


def test_a_worker_that_knows_nothing_yet_has_a_page():
    text = Page().render("unhealthy", {}, History().minutes(), NOW).decode()
    assert Reader(text).open == []
    assert "None yet." in text


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_whatever_a_task_is_called_the_page_is_well_formed_and_has_the_same_tags(eval_ids):
    plain, hostile = Reader(page(status(["x"]))), Reader(page(status(eval_ids)))
    assert (hostile.open, hostile.tags) == ([], plain.tags)
    assert not [name for name, _ in hostile.attributes if name.startswith("on") or name == "style"]


@given(st.text())
def test_a_value_shown_is_bounded_and_cannot_leave_its_place(text):
    assert not set(shown(text)) & set("<>\"'")
    assert len(html.unescape(shown(text))) <= 6 * 120


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "never"), (0.004, "0.00 s"), (0.31, "0.31 s"), (9.94, "9.9 s"), (59.6, "1 min 0 s"), (3661, "1 h 1 min")],
)
def test_durations_are_for_people(seconds, words):
    assert lasted(seconds) == words


def test_history_is_an_hour_and_no_more():
    now = [0.0]
    kept = History(lambda: now[0])
    for minute in range(200):
        now[0] = minute * 60.0
        for n in range(600):
            kept.add(Reason.EXITED, float(n))
    minutes = kept.minutes()
    assert len(minutes) == len(kept._minutes) == history.MINUTES
    assert (minutes[0].total, len(minutes[0].seconds)) == (600, history.DURATIONS)
    assert minutes[0].quantile(0.5) == 344.0  # of the newest 512 of 0 … 599
    now[0] += 3600 * 5
    assert [minute.total for minute in kept.minutes()] == [0] * history.MINUTES
    assert kept._minutes == {}


def test_every_reason_is_of_a_kind():
    kept = History()
    for reason in Reason:
        kept.add(reason, 1.0)
    assert kept.minutes()[-1].total == len(Reason)
    assert all(kept.minutes()[-1].counts.values())


@given(st.floats(min_value=1e-9, max_value=1e12))
def test_an_axis_ends_just_above_its_values(value):
    assert value * (1 - 1e-6) <= charts.nice(value) <= value * 2.5 * (1 + 1e-6)


@given(st.lists(st.one_of(st.none(), st.floats(min_value=0, max_value=1e9)), max_size=60))
def test_charts_stay_within_their_frame(values):
    drawn = charts.lines("x", {"a": values}, " s") + charts.bars(
        "x", [{"k": int(v or 0)} for v in values], {"k": "c"}, ""
    )
    assert "nan" not in drawn
    for y in re.findall(r'(?: y| cy)="([^"]+)"', drawn):
        assert -1 <= float(y) <= charts.HEIGHT


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def palettes() -> list[dict[str, str]]:
    css = resources.files("crucible_worker.observe").joinpath("page.html").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    return [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in blocks]


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
def test_the_palette_has_the_contrast_that_wcag_asks_for(palette):
    """4.5 for text (1.4.3 AA), 3 for what is not text (1.4.11)."""
    for colour in ("text", "quiet", "link", "good", "bad", "warn", "none"):
        for ground in ("page", "card"):
            assert contrast(palette[colour], palette[ground]) >= 4.5, (colour, ground)
    for badge in ("good", "bad", "warn", "none"):
        assert contrast(palette["onbadge"], palette[badge]) >= 4.5, badge
    assert contrast(palette["edge"], palette["page"]) >= 3


@pytest.fixture(scope="module")
def browser():
    with Chromium() as running:
        yield running


@pytest.fixture
def site(browser):
    """A server whose page shows what the test puts into `document`."""
    document = status(HOSTILE)
    rendered = Page()
    minutes = past().minutes()
    with HealthServer(
        "127.0.0.1:0",
        health=lambda: HealthReport(ok=True, ready=True), status=dict, metrics=lambda: ("text/plain", b""),
        page=lambda: (rendered.headers, rendered.render("healthy", document, minutes, NOW)),
    ) as server:  # fmt: skip
        browser.events.clear()
        yield f"http://127.0.0.1:{server.port}/", document


def test_hostile_names_are_words_in_a_real_browser(browser, site):
    url, _ = site
    for scheme, ground in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(14, 17, 22)")):
        browser.scheme(scheme)
        browser.open(url)
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == ground
        assert browser.evaluate("typeof window.hacked") == "undefined"
        assert "<script>window.hacked" in browser.evaluate("document.querySelector('#verdicts').innerText")
        assert browser.evaluate("document.querySelectorAll('main img, main script, main style').length") == 0
        assert browser.evaluate("document.querySelectorAll('svg rect').length") > 50
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out sideways"
    assert browser.complaints() == []
    assert browser.requests() == {url}


def test_it_keeps_itself_fresh_and_says_when_the_worker_is_gone(browser, site):
    url, document = site
    browser.open(url)
    document["slots"][1]["eval_id"] = "a-new-one"
    browser.evaluate("refresh()")
    assert "a-new-one" in browser.evaluate("document.querySelector('#slots').innerText")
    assert browser.evaluate("document.getElementById('lost').hidden") is True
    assert browser.complaints() == []
    assert browser.requests() == {url}
    browser.evaluate("fetch = () => Promise.reject(new Error('gone')); refresh()")
    assert browser.evaluate("document.getElementById('lost').hidden") is False


def test_without_scripts_it_reads_the_same_and_reloads_by_itself(browser, site):
    url, _ = site
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(url)
        text = browser.call("DOM.getOuterHTML", nodeId=browser.call("DOM.getDocument")["root"]["nodeId"])["outerHTML"]
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert '<meta http-equiv="refresh" content="10">' in text
    assert "humaneval" not in text
    assert "&lt;script&gt;window.hacked" in text
    assert browser.complaints() == []


def test_a_keyboard_reaches_every_table_and_link_and_keeps_its_place(browser, site):
    url, document = site
    browser.open(url)
    focused = []
    for _ in range(8):
        browser.key("Tab")
        focused.append(browser.evaluate("document.activeElement.id || document.activeElement.pathname || ''"))
        assert not focused[-1] or browser.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    assert [x for x in focused if x][:7] == [
        "slots-table", "engines-table", "verdicts-table", "/status", "/metrics", "/health", "/ready",
    ]  # fmt: skip
    browser.evaluate("document.getElementById('slots-table').focus()")
    document["slots"][1]["eval_id"] = "another"
    browser.evaluate("refresh()")
    assert browser.evaluate("document.activeElement.id") == "slots-table"


def test_it_fits_a_phone(browser, site):
    url, document = site
    document["reasons"] = [f"engine docker: {'y' * 200}"]
    document["engines"]["docker"] = {"runtime": "runc", "available": False, "detail": f"{'no answer ' * 10}{'z' * 99}"}
    document["slots"] = [
        {"slot": n, "doing": "running", "seconds": n * 1e5, "eval_id": "x" * 200, "engine": "docker"}
        for n in (1, 2, 10)
    ]
    browser.open(url)
    assert browser.screenshot(390, 800).startswith(b"\x89PNG")
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    widths = "[...document.querySelectorAll('#engines .wide, #slots .wide')].map(e => e.scrollWidth - e.clientWidth)"
    assert browser.evaluate(widths) == [0, 0]
    browser.call("Emulation.clearDeviceMetricsOverride")


if __name__ == "__main__":
    names = [f"humaneval-{n}" for n in (17, 4, 112, 9)]
    told = status(names) | {"reasons": []}
    told["slots"][0]["engine"], told["engines"]["gvisor"]["detail"] = "docker", "the daemon has no runtime runsc"
    shot = Page().render("healthy", told, past().minutes(), NOW)
    with (
        HealthServer(
            "127.0.0.1:0", health=lambda: HealthReport(ok=True, ready=True), status=dict, metrics=lambda: ("", b""),
            page=lambda: (Page().headers, shot),
        ) as server,
        Chromium() as tab,
    ):  # fmt: skip
        for scheme in ("light", "dark"):
            tab.scheme(scheme)
            tab.call("Emulation.setScrollbarsHidden", hidden=True)
            tab.open(f"http://127.0.0.1:{server.port}/")
            Path(__file__).parents[2].joinpath(f"docs/status-{scheme}.png").write_bytes(tab.screenshot(960, 740))
