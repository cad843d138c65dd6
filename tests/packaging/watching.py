"""How a test asks a service over HTTP, and waits for what it does."""

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

PATIENCE = 60.0


def ask(url: str, document: object = None, key: str = "") -> Any:
    """The JSON that a GET answers, or with a `document` a POST."""
    data = None if document is None else json.dumps(document).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"X-API-Key": key}), timeout=30) as answer:
        return json.load(answer)


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for somebody else's deed, which tells nobody."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.1)
