"""Events as CloudEvents 1.0 over HTTP, in structured JSON mode (CloudEvents HTTP protocol binding 1.0.2, 3.2)."""

from typing import Any

from crucible_worker.model import Event
from crucible_worker.transport import HttpTransport

CONTENT_TYPE = "application/cloudevents+json"
_DEADLINE_SECONDS = 10.0


class CloudEvents:
    """Posts each event to one URL."""

    def __init__(self, url: str, transport: HttpTransport, source: str) -> None:
        """`source` says who speaks: a URI reference, such as /crucible-worker/worker-1."""
        self._url = url
        self._transport = transport
        self._source = source

    def publish(self, event: Event) -> None:
        """Say it once.

        Raises RetryError where the bus cannot be reached or asks to wait, KeyRefusedError on 401 and 403, and
        RejectedError where it will never take it: 404 means that it has no such endpoint.
        """
        self._transport.request(
            "POST",
            self._url,
            json=document(event, self._source),
            headers={"Content-Type": CONTENT_TYPE},
            deadline=_DEADLINE_SECONDS,
        ).check()


def document(event: Event, source: str) -> dict[str, Any]:
    """The event as CloudEvents 1.0 prescribes (section 3.1)."""
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": source,
        "type": f"crucible.evaluation.{event.kind}",
        "subject": event.eval_id,
        "time": event.time,
        "datacontenttype": "application/json",
        "data": dict(event.data),
    }
