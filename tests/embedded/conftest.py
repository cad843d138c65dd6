from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_support import Client, Clock

from crucible_worker.embedded.server import EmbeddedQueue


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> Iterator[EmbeddedQueue]:
    with EmbeddedQueue(str(tmp_path / "queue.db"), clock=clock) as running:
        yield running


@pytest.fixture
def client(queue: EmbeddedQueue) -> Client:
    return Client(queue.url)
