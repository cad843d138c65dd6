import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from crucible_worker.model import Reason
from crucible_worker.observe.metrics import Metrics


@pytest.fixture
def metrics():
    return Metrics(engines=["docker", "gvisor"], slots=2, version="1.2.3")


def samples(metrics: Metrics) -> dict:
    families = text_string_to_metric_families(metrics.render()[1].decode())
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[f"crucible_worker_{name}", *sorted(labels.items())]


def test_the_metrics_are_the_documented_ones(metrics):
    families = {family.name for family in text_string_to_metric_families(metrics.render()[1].decode())}
    assert families == {
        f"crucible_worker_{name}"
        for name in [
            "polls",
            "poll_duration_seconds",
            "tasks",
            "task_duration_seconds",
            "task_phase_seconds",
            "slots",
            "slots_in_use",
            "engine_available",
            "queue_connection_errors",
            "deliveries",
            "journal_entries",
            "warm_ready",
            "orphans_removed",
            "live_log_dropped_bytes",
            "build_info",
        ]
    }


def test_every_series_with_known_labels_starts_at_zero(metrics):
    for reason in Reason:
        assert value(metrics, "tasks_total", engine="gvisor", reason=reason.value) == 0
    assert value(metrics, "polls_total", outcome="empty") == 0
    assert value(metrics, "deliveries_total", result="rejected") == 0
    assert value(metrics, "task_phase_seconds_count", phase="boot") == 0
    assert value(metrics, "engine_available", engine="docker") == 0
    assert value(metrics, "journal_entries", state="dead") == 0
    assert value(metrics, "slots") == 2
    assert value(metrics, "build_info", version="1.2.3") == 1


def test_what_happens_is_counted(metrics):
    metrics.polled("task", 0.2)
    metrics.queue_connection_failed()
    metrics.slot_taken()
    metrics.slot_taken()
    metrics.slot_freed()
    metrics.task_finished("docker", Reason.TIMEOUT, 0.3, {"create": 0.1, "thaw": 0.2})
    metrics.engine_available("gvisor", True)
    metrics.delivered("retry")
    metrics.journal("pending", 4)
    metrics.warm(1)
    metrics.orphans_removed(3)
    metrics.live_log_dropped(5)
    assert value(metrics, "polls_total", outcome="task") == 1
    assert value(metrics, "poll_duration_seconds_sum") == pytest.approx(0.2)
    assert value(metrics, "queue_connection_errors_total") == 1
    assert value(metrics, "slots_in_use") == 1
    assert value(metrics, "tasks_total", engine="docker", reason="timeout") == 1
    assert value(metrics, "task_duration_seconds_bucket", le="0.5") == 1
    assert value(metrics, "task_duration_seconds_bucket", le="0.25") == 0
    assert value(metrics, "task_phase_seconds_sum", phase="thaw") == pytest.approx(0.2)
    assert value(metrics, "engine_available", engine="gvisor") == 1
    assert value(metrics, "deliveries_total", result="retry") == 1
    assert value(metrics, "journal_entries", state="pending") == 4
    assert value(metrics, "warm_ready") == 1
    assert value(metrics, "orphans_removed_total") == 3
    assert value(metrics, "live_log_dropped_bytes_total") == 5


def test_engines_that_tasks_make_up_are_one_series(metrics):
    before = len(samples(metrics))
    for n in range(100):
        metrics.task_finished(f"made-up-{n}\n", Reason.ENGINE_UNAVAILABLE, 0.1, {})
    assert len(samples(metrics)) == before
    assert value(metrics, "tasks_total", engine="other", reason="engine_unavailable") == 100


def test_registries_are_separate_and_none_is_the_global_one(metrics):
    Metrics(engines=["docker"], slots=1, version="1").slot_taken()
    assert value(metrics, "slots_in_use") == 0
    assert not [family for family in REGISTRY.collect() if "crucible" in family.name]


def test_the_page_is_small_text(metrics):
    content_type, body = metrics.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    assert b"_created" not in body
