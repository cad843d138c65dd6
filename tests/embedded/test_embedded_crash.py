"""kill -9 of the real command in the middle of real work: nothing acknowledged is lost, nothing is doubled."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from embedded_support import Client

from crucible_worker.embedded.entry import State
from crucible_worker.embedded.store import Store
from crucible_worker.errors import RetryError

KILLS = 5
ROOT = Path(__file__).parents[2]


class Queue:
    """The `queue` command in a process of its own."""

    def __init__(self, database: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "crucible_worker", "queue", "--address", "127.0.0.1:0", "--database", str(database)],
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "CRUCIBLE_LOG_FORMAT": "json"},
        )
        line = self.process.stderr.readline()
        self.url = json.loads(line)["url"]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(10)
        self.process.stderr.close()
        return code


class Load:
    """Submitters and workers that note what was acknowledged to them, until the queue is gone."""

    def __init__(self) -> None:
        self.submitted: set[str] = set()
        self.claimed: Counter[str] = Counter()
        self.completed: dict[str, str] = {}
        self.numbers = itertools.count()

    def run(self, url: str, kill) -> None:
        threads = [threading.Thread(target=self.submit, args=(url,)) for _ in range(3)]
        threads += [threading.Thread(target=self.work, args=(url,)) for _ in range(3)]
        goal = len(self.completed) + 20 + random.randrange(20)
        for thread in threads:
            thread.start()
        while len(self.completed) < goal:
            assert any(thread.is_alive() for thread in threads)
            time.sleep(0.001)
        kill()
        for thread in threads:
            thread.join()

    def submit(self, url: str) -> None:
        client = Client(url)
        try:
            while True:
                eval_id = f"task/{next(self.numbers)}"
                assert client.submit(eval_id).status == 201
                self.submitted.add(eval_id)
        except RetryError:
            return

    def work(self, url: str) -> None:
        client = Client(url)
        try:
            while True:
                task = client.next(Prefer="wait=5")
                if task is None:
                    continue
                eval_id, lease = task["eval_id"], task["lease"]["id"]
                self.claimed[eval_id] += 1
                assert client.of(eval_id, "complete", {"output": lease, "lease": lease}).status == 200
                self.completed[eval_id] = lease
        except RetryError:
            return


def test_kill_9_loses_and_doubles_nothing(tmp_path):
    database, load = tmp_path / "queue.db", Load()
    for _ in range(KILLS):
        queue = Queue(database)
        load.run(queue.url, lambda queue=queue: queue.end(signal.SIGKILL))
    assert len(load.completed) >= KILLS * 20
    assert max(load.claimed.values()) == 1  # no lease expired in between
    store = Store(str(database), clock=lambda: time.time() + 1000)
    rest = []
    while task := store.claim():
        rest.append(task.eval_id)
    assert len(rest) == len(set(rest))
    for eval_id, lease in load.completed.items():
        entry = store.get(eval_id)
        assert (entry.state, entry.outcome) == (State.COMPLETED, f'"{lease}"')
    for eval_id in load.submitted - load.completed.keys():
        # A completion may have been recorded though its answer was killed.
        assert (eval_id in rest) != (store.get(eval_id).state is State.COMPLETED)
    assert not load.completed.keys() & set(rest)
    store.close()


def test_term_ends_the_command_with_code_0(tmp_path):
    queue = Queue(tmp_path / "queue.db")
    Client(queue.url).submit("a")
    assert queue.end(signal.SIGTERM) == 0
    queue = Queue(tmp_path / "queue.db")
    assert Client(queue.url).next()["eval_id"] == "a"
    assert queue.end(signal.SIGINT) == 0
