"""Whatever breaks, and whenever: each task is settled exactly once with the right bytes, and nothing is left behind."""

import itertools
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fault_proxy import AFTER, BEFORE, Proxy
from scene import CODE, Scene
from scripted_queue import ScriptedQueue, settled_id
from scripted_server import Answer, Call, status

pytestmark = pytest.mark.engine
# Every step of a task's life lies between two calls, to the queue or to the Docker Engine.
STEPS = [
    ("poll", BEFORE, 1), ("poll", AFTER, 1),
    ("create", BEFORE, 1), ("create", AFTER, 1),
    ("inspect", BEFORE, 1), ("inspect", AFTER, 1),
    ("attach", BEFORE, 1), ("attach", AFTER, 1),
    ("start", BEFORE, 1), ("start", AFTER, 1),
    ("output", BEFORE, 1), ("output", AFTER, 1),
    ("wait", BEFORE, 1), ("wait", AFTER, 1),
    ("remove", BEFORE, 1), ("remove", AFTER, 1),
    ("inspect", BEFORE, 2), ("inspect", AFTER, 2),
    ("settle", BEFORE, 1), ("settle", AFTER, 1),
]  # fmt: skip
QUEUE_STEPS = {"poll", "settle"}


def name_of(step) -> str:
    kind, moment, nth = step
    return f"{moment} {kind} {nth}"


def killed_at(step) -> str:
    """Kill -9 a worker at one step of a task, let its next life go on, and see that all is well."""
    kind, moment, nth = step
    scene = Scene()
    try:
        task = scene.submit()
        proxy = scene.proxy if kind in QUEUE_STEPS else scene.docker_proxy

        def kill_9() -> None:
            scene.kill()

        fault = proxy.arm(kind, moment, kill_9, nth)
        scene.worker()
        assert fault.happened.wait(60), f"never came to {name_of(step)}"
        again = scene.worker()
        scene.settled_well(task)
        again.event("engine_available")
        scene.ends_clean(again)
        assert scene.ask("GET", f"/tasks/{task}")["status"] == "completed"
    finally:
        scene.close()
    return name_of(step)


def test_kill_9_at_every_step_of_a_task(daemon, sandbox_image, survived):
    side_by_side(killed_at, STEPS, survived)


class PlainQueue(ScriptedQueue):
    """The Queue Service: it forgets what it hands out, and takes the first settlement of a task only."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, Call] = {}

    def answer(self, call: Call) -> Answer:
        if call.method != "POST":
            return super().answer(call)
        if settled_id(call) in self.taken:
            return status(404, "{}")
        self.taken[settled_id(call)] = call
        return status(200, "{}")


def killed_at_plainly(step) -> str:
    """The same with a queue without leases: settled by the worker's next life, whatever it still can find out."""
    kind, moment, nth = step
    with PlainQueue() as queue:
        scene = Scene(plain=queue.port)
        try:
            queue.push({"eval_id": "task", "code": CODE, "timeout": 5})
            proxy = scene.proxy if kind in QUEUE_STEPS else scene.docker_proxy

            def kill_9() -> None:
                scene.kill()

            fault = proxy.arm(kind, moment, kill_9, nth)
            scene.worker()
            assert fault.happened.wait(60), f"never came to {name_of(step)}"
            again = scene.worker()
            call = queue.wait(lambda: queue.taken.get("task"), f"a settlement, {name_of(step)}")
            if call.path.endswith("/complete"):
                scene.said_well(call.json["output"])
            else:
                assert call.json["error"].startswith("worker_crashed: "), call.body
            again.event("engine_available")
            scene.ends_clean(again)
        finally:
            scene.close()
    return name_of(step)


def side_by_side(kill, steps, survived) -> None:
    """Most of it is waiting; every one has a queue, a state directory and a worker id of its own."""
    failures = []
    with ThreadPoolExecutor(4) as pool:
        for step, future in [(step, pool.submit(kill, step)) for step in steps]:
            try:
                survived[future.result()] += 1
            except BaseException as error:  # noqa: BLE001 - all of them are told
                failures.append(f"{name_of(step)}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


def test_kill_9_with_a_queue_that_forgets(daemon, sandbox_image, survived, long):
    """But for a task whose handing out nobody has heard: of that one only the queue ever knew."""
    chosen = {"create", "output", "wait", "remove", "settle"}
    steps = [step for step in STEPS if step[:2] != ("poll", AFTER) and (long or step[0] in chosen)]
    side_by_side(killed_at_plainly, steps, survived)


QUEUE_FAULTS = [
    (kind, moment, action)
    for kind, moment, actions in [
        ("poll", BEFORE, ("drop", "503", "delay")),
        ("poll", AFTER, ("drop", "503", "cut", "delay", "twice")),
        ("settle", BEFORE, ("drop", "503", "delay")),
        ("settle", AFTER, ("drop", "503", "cut", "delay", "twice")),
        ("heartbeat", BEFORE, ("drop", "503", "delay")),
        ("heartbeat", AFTER, ("drop", "503", "cut", "delay", "twice")),
    ]
    for action in actions
]


def test_a_queue_that_fails_in_every_way(scene, survived):
    """One worker lives through all of them, a task for each."""
    worker = scene.worker(CRUCIBLE_CONCURRENCY="3")
    worker.event("engine_available")
    slow = (
        "import sys, time\nprint('hello', flush=True)\ntime.sleep(1.5)\nprint('bye')\nprint('oops', file=sys.stderr)\n"
    )
    for batch in threes(QUEUE_FAULTS):
        faults = [scene.proxy.arm(*fault) for fault in batch]
        tasks = [scene.submit(slow + "raise SystemExit(3)") for _ in batch]
        for task in tasks:
            assert not scene.settled_well(task).get("adopted")
        for fault in faults:
            if fault.kind != "heartbeat":
                assert fault.happened.wait(60), fault
                survived[f"{fault.action} {fault.moment} {fault.kind}"] += 1
    # What was armed for heartbeats hits one after the other.
    task = scene.submit("import time; time.sleep(14)", timeout=60)
    assert scene.result(task)["reason"] == "exited"
    left = scene.proxy._faults
    assert not left, left
    for kind, moment, action in QUEUE_FAULTS:
        survived[f"{action} {moment} {kind}"] += kind == "heartbeat"
    scene.ends_clean(worker)


def threes(items):
    return [items[start : start + 3] for start in range(0, len(items), 3)]


def test_a_queue_that_is_away_for_longer_than_every_pause(scene, survived, long):
    task = scene.submit()
    fault = scene.docker_proxy.arm("output", AFTER, scene_closes(scene))
    worker = scene.worker()
    assert fault.happened.wait(60)
    worker.event("result_delivery_failed", eval_id=task, count=5 if long else 3)
    worker.event("queue_connection_failed", count=3)
    assert worker.get("/health")[0] == 200
    assert worker.get("/ready")[0] == 503
    scene.open_queue()
    scene.settled_well(task)
    worker.event("queue_connection_restored")
    survived["outage"] += 1
    scene.ends_clean(worker)


def scene_closes(scene):
    def queue_goes_away() -> bool:
        scene.close_queue()
        return True

    return queue_goes_away


def test_a_signal_during_a_poll_loses_nothing(scene, survived):
    """The queue has handed the task out when the signal comes."""
    task = scene.submit()

    def term() -> bool:
        scene.starter._running[-1].signal(signal.SIGTERM)
        time.sleep(0.5)
        return True

    fault = scene.proxy.arm("poll", AFTER, term)
    worker = scene.worker()
    assert fault.happened.wait(60)
    assert worker.exit_code() == 0
    scene.settled_well(task)
    scene.nothing_left()
    survived["TERM"] += 1


def test_two_workers_with_one_id_leave_each_other_alone(scene, survived):
    tasks = [scene.submit() for _ in range(8)]
    first = scene.worker(CRUCIBLE_CONCURRENCY="2")
    second = scene.worker(CRUCIBLE_STATE_DIR=str(scene.root / "other"), CRUCIBLE_CONCURRENCY="2")
    second.event("processing_task_started")
    first.event("processing_task_started")
    first.signal(signal.SIGKILL)
    first.exit_code()
    Proxy.injected["kill_9 one of two"] += 1
    third = scene.worker(CRUCIBLE_CONCURRENCY="2")
    for task in tasks:
        scene.settled_well(task)
    assert not [line for line in second.lines if line.get("reason") in {"engine_error", "engine_unavailable"}]
    assert second.stop() == 0
    scene.ends_clean(third)
    survived["two workers"] += 1


def test_random_faults_for_as_long_as_asked(daemon, sandbox_image, survived, long):
    """With --long HOURS: kills at random steps, side by side."""
    if not long:
        pytest.skip("only with --long HOURS")
    until, steps = time.monotonic() + long * 3600, itertools.cycle(STEPS)
    lock = threading.Lock()

    def worker() -> None:
        while time.monotonic() < until:
            with lock:
                step = next(steps)
            survived[killed_at(step)] += 1

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(worker) for _ in range(4)]:
            future.result()
