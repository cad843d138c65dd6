"""The dashboard asks for series that exist; the alert rules are valid, quiet when all is well, and ring when not."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from precondition import unavailable
from prometheus_client.parser import text_string_to_metric_families

from crucible_worker.observe.metrics import Metrics

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
ALERTS = (GRAFANA / "alerts.yaml").read_text(encoding="utf-8")
DASHBOARD = json.loads((GRAFANA / "dashboard.json").read_text(encoding="utf-8"))


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def promtool(*arguments: str) -> str:
    if shutil.which("promtool") is None:
        unavailable("promtool is missing")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def known() -> dict[str, set[tuple[str, str]]]:
    """The labels of every series that a fresh worker has."""
    metrics = Metrics(engines=["docker"], slots=1, version="1")
    found: dict[str, set[tuple[str, str]]] = {}
    for family in text_string_to_metric_families(metrics.render()[1].decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels.items())
    return found


def test_queries_and_alerts_use_only_what_a_worker_has(known):
    asked = [*expressions(), ALERTS, json.dumps(DASHBOARD["templating"])]
    names = {name for text in asked for name in re.findall(r"crucible_worker_\w+", text)}
    assert names <= set(known)
    for name, selector in re.findall(r"(crucible_worker_\w+)\{([^}]*)\}", "\n".join([*expressions(), ALERTS])):
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', selector):
            if label != "instance":
                assert {(label, value) for value in values.split("|")} <= known[name], (name, label)


def test_every_metric_is_on_the_dashboard(known):
    shown = "\n".join(expressions())
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in known}
    assert {name for name in families if name not in shown} == set()


def test_the_dashboard_s_queries_are_promql(tmp_path):
    rules = [
        {"record": f"q{n}", "expr": expr.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for n, expr in enumerate(expressions())
    ]
    path = tmp_path / "queries.yaml"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(path))


def test_the_panels_do_not_overlap_and_have_ids_of_their_own():
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_alert_rules_are_valid():
    assert f"{ALERTS.count('- alert:')} rules found" in promtool("check", "rules", str(GRAFANA / "alerts.yaml"))


def test_alerts_are_quiet_when_all_is_well_and_ring_when_it_is_not(tmp_path):
    shutil.copy(GRAFANA / "alerts.yaml", tmp_path)
    shutil.copy(Path(__file__).parent / "alerts_test.yaml", tmp_path)
    promtool("test", "rules", str(tmp_path / "alerts_test.yaml"))


def test_every_alert_has_its_place_in_the_runbook():
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    asked = re.findall(r"runbook: docs/runbook.md#(\S+)", ALERTS)
    assert len(asked) == ALERTS.count("- alert:")
    assert set(asked) <= anchors
