"""Programs that take what they can get: each has its verdict, and the worker is as it was before.

The `sandbox` fixture sees that neither a sandbox nor a cgroup is left of them.
"""
# ruff: noqa: E501, ISC004 - a program is a row

import os
import threading
from pathlib import Path

import pytest

from crucible_worker.model import Reason, Status

LIMITS = {
    "memory_bytes": 64 << 20,
    "tmp_bytes": 16 << 20,
    "processes": 24,
    "timeout_seconds": 3.0,
    "output_bytes": 1 << 16,
    "output_limit_bytes": 4 << 20,
}
EXITED = {Reason.EXITED}
NONZERO = {Reason.EXITED_NONZERO}
TIMEOUT = {Reason.TIMEOUT}
MEMORY = {Reason.OUT_OF_MEMORY}
OUTPUT = {Reason.OUTPUT_LIMIT}
SIGNALED = {Reason.SIGNALED}
# Each of them has reached a limit; which one is first depends on how far the host lets it come.
LIMIT = {Reason.OUT_OF_MEMORY, Reason.PROCESS_LIMIT, Reason.TIMEOUT}

REFUSED = """
import os, signal, sys
try:
    while True:
        if os.fork() == 0: signal.pause()
except OSError:
    sys.exit(%d)
"""

# What it does, the program, what may be its reason on runc, and on gVisor where that differs.
PROGRAMS = [
    ("forks", "import os\nwhile True: os.fork()", LIMIT),
    ("forks, come what may", "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", LIMIT),
    ("threads", "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1000,)).start()", LIMIT),
    (
        "daemons by double fork",
        (
            "import os, time\nwhile True:\n    try:\n        if os.fork() == 0:\n            os.setsid()\n"
            "            if os.fork(): os._exit(0)\n            time.sleep(1000)\n        os.wait()\n    except OSError: pass"
        ),
        LIMIT,
    ),
    ("subprocesses", "import subprocess, sys\nwhile True: subprocess.Popen([sys.executable, __file__])", LIMIT),
    ("as many processes as there may be", REFUSED % 3, {Reason.PROCESS_LIMIT}, MEMORY),
    ("the same, and content", REFUSED % 0, EXITED, MEMORY),
    ("heap", "x = []\nwhile True: x.append(bytearray(b'x' * (1 << 20)))", MEMORY),
    ("small objects", "x = []\nwhile True: x.append(object())", MEMORY),
    ("mapped memory", "import mmap\nm = mmap.mmap(-1, 1 << 30)\nfor at in range(0, 1 << 30, 4096): m[at] = 1", MEMORY),
    ("shared memory", "open('/dev/shm/x', 'wb').write(bytes(15 << 20))\nx = b'x' * (1 << 30)", MEMORY),
    ("files count as memory", "open('/tmp/x', 'wb').write(bytes(15 << 20))\nx = b'x' * (52 << 20)", MEMORY),
    ("memory that is refused", "try: b'x' * (1 << 50)\nexcept MemoryError: print('refused')", EXITED),
    ("memory in a child", "import os\nif os.fork() == 0: x = b'x' * (1 << 30)\nos.wait()", EXITED, MEMORY),
    ("all CPUs", "import threading\ndef spin():\n    while True: pass\nfor _ in range(8): threading.Thread(target=spin).start()",
     TIMEOUT),
    ("deaf to SIGTERM", "import signal\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\nwhile True: pass", TIMEOUT),
    ("stops itself", "import os\nos.kill(os.getpid(), 19)", TIMEOUT),
    ("stops its group", "import os\nif os.fork() == 0: os.kill(0, 19)\nos.wait()", TIMEOUT),
    ("hangs in an exit handler", "import atexit, time\natexit.register(time.sleep, 1000)", TIMEOUT),
    ("leaves a thread", "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()", TIMEOUT),
    ("kills all it may", "import os, time\nif os.fork() == 0: time.sleep(1000)\nos.kill(-1, 9)\nprint('alive')", EXITED),
    ("kills its group", "import os\nos.killpg(0, 9)", SIGNALED),
    ("floods stdout", "import os\nwhile True: os.write(1, b'x' * 65536)", OUTPUT),
    ("floods stderr", "import os\nwhile True: os.write(2, b'\\0' * 65536)", OUTPUT),
    ("floods both from children", "import os\nos.fork()\nwhile True: os.write(1, b'x' * 4096); os.write(2, b'y' * 4096)",
     OUTPUT),
    ("floods byte by byte", "import os\nwhile True: os.write(1, b'x')", OUTPUT | TIMEOUT),
    ("one line of a gigabyte", "import sys\nfor _ in range(1 << 10): sys.stdout.write('x' * (1 << 20))", OUTPUT),
    ("floods after closing the other", "import os\nos.close(1)\nwhile True: os.write(2, b'x' * 65536)", OUTPUT),
    ("closes its streams and goes on", "import os, time\nfor fd in (0, 1, 2): os.close(fd)\ntime.sleep(1000)", TIMEOUT),
    ("a child holds the streams", "import os, time\nif os.fork() == 0: time.sleep(1000)", EXITED),
    ("writes where nothing is", "import os, sys\nfor fd in range(3, 256):\n    try: os.write(fd, b'x')\n"
     "    except OSError: pass\n    else: sys.exit(fd)", EXITED),
    ("no room on the tmpfs", "open('/tmp/x', 'wb').write(bytes(40 << 20))", NONZERO),
    ("a sparse file past its limit", "import os, signal\nsignal.signal(25, signal.SIG_DFL)\n"
     "os.truncate(os.open('/tmp/x', os.O_CREAT | os.O_RDWR), 1 << 40)", SIGNALED, SIGNALED | NONZERO),
    ("inodes", "import itertools\nfor n in itertools.count(): open(f'/tmp/{n}', 'w').close()",
     MEMORY | NONZERO | TIMEOUT),
    ("a deep tree", "import os\nos.chdir('/tmp')\nfor _ in range(2000): os.mkdir('d'); os.chdir('d')\nprint('deep')", EXITED),
    ("all descriptors", "import os, sys\ntry:\n    while True: os.dup(1)\nexcept OSError: sys.exit(0)",
     EXITED),
    ("recursion in C", "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()", SIGNALED | NONZERO | MEMORY),
    ("segmentation fault", "import ctypes\nctypes.string_at(0)", SIGNALED),
    ("abort", "import os\nos.abort()", SIGNALED),
    ("a bomb of gzip", "import zlib\nd = zlib.compress(bytes(1 << 24))\nx = [zlib.decompress(d) for _ in range(9)]", MEMORY),
    ("memory of System V", "import ctypes\nl = ctypes.CDLL(None)\nl.shmat.restype = ctypes.c_void_p\n"
     "at = l.shmat(l.shmget(0, 1 << 30, 0o1600), None, 0)\nctypes.memset(at, 1, 1 << 30)", MEMORY),
    ("memory in files without names", "import os\nfor _ in range(9): os.write(os.memfd_create('x'), bytes(15 << 20))", MEMORY),
    ("room for a file that is not written", "import os\nos.posix_fallocate(os.open('/tmp/x', os.O_CREAT | os.O_RDWR), 0, 40 << 20)",
     NONZERO),
    ("pipes that nobody reads", "import os\nwhile True:\n    r, w = os.pipe()\n    os.set_blocking(w, False)\n"
     "    os.write(w, bytes(1 << 20))", NONZERO),
    ("the end as the supervisor tells it", "import os\nos.write(1, bytes(16) + b'E\\0')\nos._exit(3)", NONZERO),
    ("the engine's own frames", "import os, sys\nos.write(1, b'\\1\\0\\0\\0\\0\\0\\0\\4' * 9 + b'RS')\nsys.exit(3)", NONZERO),
    ("a result of its own", "import sys\nprint('{\"status\": \"completed\", \"reason\": \"exited\", \"exit_code\": 0}')\nsys.exit(3)",
     NONZERO),
    ("ends at once", "import os\nos._exit(0)", EXITED),
]  # fmt: skip


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def expected(row: tuple, *, plain: bool) -> set[Reason]:
    return row[3] if not plain and len(row) > 3 else row[2]


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_every_program_has_its_verdict(sandbox, warm):
    """Side by side, so that none takes anything from its neighbours either; neither memory nor a thread stays."""
    sandbox.warm = warm
    sandbox.all("", "", "", "", **LIMITS)
    threads, memory = threading.active_count(), resident_bytes()
    runs = sandbox.all(*(row[1] for row in PROGRAMS), **LIMITS)
    wrong = {
        row[0]: run.verdict
        for row, run in zip(PROGRAMS, runs, strict=True)
        if run.verdict.reason not in expected(row, plain=sandbox.plain)
    }
    assert wrong == {}
    for run in runs:
        assert (run.verdict.status is Status.COMPLETED) == (run.verdict.reason is Reason.EXITED)
        assert len(run.stdout.data) + len(run.stderr.data) <= 2 * (LIMITS["output_bytes"] + 100)
    assert threading.active_count() <= threads
    assert resident_bytes() < memory + (16 << 20)


LEAVE = """
import os
for folder, _, _ in os.walk("/"):
    try: open(folder + "/left-behind", "w").close()
    except OSError: pass
    else: print(folder)
"""
LOOK = "import os\nprint([folder for folder, _, files in os.walk('/') if 'left-behind' in files])"


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_nothing_is_left_for_the_next_one(sandbox, warm):
    sandbox.warm = warm
    left = set(sandbox(LEAVE).stdout.data.decode().split())
    assert {"/tmp", "/sandbox", "/dev/shm"} <= left
    assert sandbox(LOOK).stdout.data == b"[]\n"


def test_input_that_nobody_reads_holds_nothing_up(sandbox):
    run = sandbox("print('done')", "x" * (10 << 20))
    assert (run.verdict.reason, run.stdout.data) == (Reason.EXITED, b"done\n")


@pytest.mark.parametrize("stream", [1, 2])
def test_a_flood_after_much_output_is_counted(sandbox, stream):
    run = sandbox(
        f"import os\nleft = 48 << 16\nwhile left: left -= os.write({stream}, b'x' * min(left, 65536))", **LIMITS
    )
    captured = run.stdout if stream == 1 else run.stderr
    assert (run.verdict.reason, captured.total_bytes, captured.truncated) == (Reason.EXITED, 48 << 16, True)
