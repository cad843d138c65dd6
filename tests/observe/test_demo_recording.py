"""The README's picture of the demo: what it says, and that a browser shows it line by line, or all at once."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from chromium import Chromium

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs/demo.svg"
SVG = "{http://www.w3.org/2000/svg}"
BUDGET = 60_000
LINES = "[...document.querySelectorAll('.line')]"


def recorded() -> str:
    """The same recording as text, in the README."""
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- demo -->\n")[1].split("<!-- /demo -->")[0]
    return re.sub("^ {4}", "", block, flags=re.MULTILINE).strip()


def test_it_says_what_the_readme_says_to_eyes_and_ears():
    root = ET.parse(PICTURE).getroot()
    seen = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert seen == [line for line in recorded().splitlines() if line]
    assert root.find(f"{SVG}title").text
    assert root.find(f"{SVG}desc").text.splitlines() == recorded().splitlines()


def test_it_is_small_and_asks_for_nothing():
    text = PICTURE.read_text(encoding="utf-8")
    assert len(text) < BUDGET
    allowed = {"svg", "title", "desc", "style", "rect", "path", "circle", "text", "tspan"}
    assert {element.tag.removeprefix(SVG) for element in ET.fromstring(text).iter()} <= allowed
    outside = text.replace('xmlns="http://www.w3.org/2000/svg"', "").replace(recorded(), "")
    assert re.findall(r"href|url\(|@import|\bon\w+=", outside) == []


@pytest.fixture(scope="module")
def browser():
    with Chromium() as running:
        yield running


def test_lines_come_at_their_times_and_stay(browser):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "no-preference"}])
    browser.open(PICTURE.as_uri())
    shown = f"{LINES}.map(line => getComputedStyle(line).visibility)"
    at = "document.getAnimations().forEach(a => {{ a.pause(); a.currentTime = {} }})"
    lines = len([line for line in recorded().splitlines() if line])
    browser.evaluate(at.format(2))
    assert browser.evaluate(shown) == ["visible", *["hidden"] * (lines - 1)]
    browser.evaluate(at.format(60_000))
    assert browser.evaluate(shown) == ["visible"] * lines


def test_whoever_wants_no_motion_sees_all_of_it(browser):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    browser.open(PICTURE.as_uri())
    assert browser.evaluate("document.getAnimations().length") == 0


def test_its_columns_stand(browser):
    browser.open(PICTURE.as_uri())
    statuses = "[...document.querySelectorAll('.completed, .failed, .timeout')]"
    places = browser.evaluate(f"{statuses}.map(s => s.getStartPositionOfChar(0).x)")
    assert len(places) == 10
    assert max(places) - min(places) < 1


def test_nothing_sticks_out_of_the_window_and_it_is_dark_in_the_dark(browser):
    grounds = set()
    for scheme in ("light", "dark"):
        browser.scheme(scheme)
        browser.open(PICTURE.as_uri())
        window = "document.querySelector('.window')"
        assert browser.evaluate(f"{LINES}.every(l => l.getBBox().x + l.getBBox().width < {window}.getBBox().width)")
        grounds.add(browser.evaluate(f"getComputedStyle({window}).fill"))
    assert len(grounds) == 2
