import dataclasses
import json

import pytest

from crucible_worker.errors import KeyRefusedError, RejectedError, RetryError
from crucible_worker.events.cloudevents import CloudEvents
from crucible_worker.model import EventKind
from crucible_worker.transport import HttpTransport

SOURCE = "/crucible-worker/w1"


def test_an_event_arrives_as_cloudevents_prescribe(bus, event):
    CloudEvents(bus.url, HttpTransport(lambda: "key"), SOURCE).publish(event)
    [(path, headers, body)] = bus.received
    assert (path, headers["Content-Type"], headers["X-API-Key"]) == ("/events", "application/cloudevents+json", "key")
    assert json.loads(body) == {
        "specversion": "1.0",
        "id": "id-1",
        "source": SOURCE,
        "type": "crucible.evaluation.completed",
        "subject": "e/1",
        "time": "2026-01-31T12:00:00.000Z",
        "datacontenttype": "application/json",
        "data": dict(event.data),
    }


@pytest.mark.parametrize("kind", EventKind)
def test_the_type_names_the_kind(bus, event, kind):
    CloudEvents(bus.url, HttpTransport(), SOURCE).publish(dataclasses.replace(event, kind=kind))
    assert json.loads(bus.received[0][2])["type"] == f"crucible.evaluation.{kind.value}"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((status, RetryError) for status in (408, 425, 429, 500, 503, 302)),
        *((status, KeyRefusedError) for status in (401, 403)),
        *((status, RejectedError) for status in (400, 404, 405, 410, 413, 415)),
    ],
)
def test_what_the_bus_answers_says_what_to_do_next(bus, event, status, error):
    bus.status = status
    with pytest.raises(error):
        CloudEvents(bus.url, HttpTransport(), SOURCE).publish(event)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_2xx_is_accepted(bus, event, status):
    bus.status = status
    CloudEvents(bus.url, HttpTransport(), SOURCE).publish(event)


def test_the_bus_may_ask_to_wait(bus, event):
    bus.status, bus.headers = 429, {"Retry-After": "7"}
    with pytest.raises(RetryError) as caught:
        CloudEvents(bus.url, HttpTransport(), SOURCE).publish(event)
    assert caught.value.retry_after == 7.0


def test_a_bus_that_is_down_is_tried_again(event, closed_port):
    with pytest.raises(RetryError):
        CloudEvents(f"http://127.0.0.1:{closed_port}/events", HttpTransport(), SOURCE).publish(event)
