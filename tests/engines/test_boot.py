"""Code in a sandbox behaves as with `python main.py`: every program here is run both ways, and must show the same."""

import os
import re
import signal
import subprocess
import sys

import pytest

from crucible_worker.model import Reason, Run

GROUPS = {
    "plain sources": {
        "hello": "print('hello')",
        "empty": "",
        "comment only": "# nothing",
    },
    "exceptions": {
        "traceback": "def f(x):\n    return 1 / x\n\nprint('before')\nf(0)",
        "chained traceback": "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('b') from e",
        "context": "try:\n    {}['a']\nexcept KeyError:\n    undefined",
        "exception group": "raise ExceptionGroup('two', [ValueError(1), TypeError(2)])",
        "exception notes": "e = ValueError('x')\ne.add_note('a note')\nraise e",
        "traceback through the standard library": "import json\njson.loads('{')",
        "exception without arguments": "raise RuntimeError",
        "exception whose text fails": "class E(Exception):\n    def __str__(self):\n        return 1 / 0\nraise E",
    },
    "errors of syntax": {
        "syntax error": "print('never')\nx ===",
        "indentation error": "if 1:\nx = 1",
        "unclosed": "print((1, 2)\n",
        "syntax error in eval": "eval('x ===')",
    },
    "encodings": {
        "byte order mark": "\ufeffprint('bom', __file__[-7:])",
        "coding cookie": "# -*- coding: latin-1 -*-\nprint(ascii('é'), 'é')",
        "unicode": "print('žluťoučký 😀 \\u202e')",
        "carriage returns": "print(1)\r\nprint(2)\rprint(3)\n",
        "no newline at the end": "if 1:\n    print(1)",
    },
    "exits": {
        "exit with a text": "import sys\nsys.exit('goodbye')",
        "exit with None": "import sys\nsys.exit(None)",
        "exit with a tuple": "raise SystemExit((1, 2))",
        "exit modulo 256": "import sys\nsys.exit(259)",
        "exit negative": "import sys\nsys.exit(-1)",
        "exit builtin": "exit(3)",
        "exit at once": "import os\nos._exit(7)",
        "exit in a thread": "import sys, threading\nthreading.Thread(target=sys.exit, args=(5,)).start()",
        "keyboard interrupt": "print('a')\nraise KeyboardInterrupt",
        "interrupted": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfor _ in range(1000): pass",
    },
    "hooks": {
        "its own hook": "import sys\nsys.excepthook = lambda *e: print('hook', e[0].__name__, e[1])\nraise KeyError(1)",
        "a broken hook": "import sys\ndef hook(a, b, c): raise ValueError('hook')\nsys.excepthook = hook\n"
        "raise KeyError(1)",
        "a hook that looks around": "import sys\nsys.excepthook = lambda *e: print(sys.exc_info())\n1/0",
        "a hook that is none": "import sys\nsys.excepthook = 5\n1/0",
        "exit in a hook": "import sys\nsys.excepthook = lambda *e: sys.exit(9)\nraise KeyError(1)",
    },
    "what runs last": {
        "atexit": "import atexit\natexit.register(print, 'last')\nprint('first')\nraise ValueError",
        "atexit after exit": "import atexit, sys\natexit.register(print, 'last')\nsys.exit(4)",
        "atexit after an interrupt": "import atexit\natexit.register(print, 'last')\nraise KeyboardInterrupt",
        "thread after an interrupt": "import threading, time\ndef f():\n    time.sleep(0.1)\n    print('thread')\n"
        "threading.Thread(target=f).start()\nraise KeyboardInterrupt",
        "finalizer": "class A:\n    def __del__(self): print('gone')\na = A()",
        "failing finalizer": "class A:\n    def __del__(self): 1 / 0\nA()\nprint('on')",
        "a thread goes on": "import threading, time\ndef f():\n    time.sleep(0.1)\n    print('thread')\n"
        "threading.Thread(target=f).start()\nprint('main')",
        "a daemon thread ends": "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(100,), daemon=True).start()\nprint('main')",
        "a failing thread": "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='T')\nt.start()\n"
        "t.join()",
    },
    "standard output": {
        "not flushed": "import sys\nsys.stdout.write('no newline')",
        "stdout closed": "import sys\nsys.stdout.close()",
        "stderr gone": "import os\nos.close(2)\nprint('x')\n1/0",
    },
    "the main module": {
        "main": "import sys\nprint(__name__, __file__, sys.argv, sys.path[0], __spec__, __package__, __doc__)\n"
        "print(sorted(globals()), type(__builtins__), type(__loader__).__name__, __cached__)\n"
        "print(sys.modules['__main__'].__dict__ is globals(), sys.orig_argv[1:] and sys.orig_argv[-1][-7:], sys.flags)",
        "docstring": "'''Said first.'''\nprint(__doc__)",
        "if main": "def main():\n    return 3\nif __name__ == '__main__':\n    raise SystemExit(main())",
        "inspect": "import inspect\ndef f():\n    return 1  # here\nprint(inspect.getsource(f), inspect.getfile(f))",
        "pickle": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A, A.__module__)",
        "import main": "print(__name__)\nimport main\nprint(main.__file__)",
        "own module": "open('other.py', 'w').write('x = 1')\nimport other\nprint(other.x, other.__file__)",
        "dataclass": "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\nprint(A(1))",
        "type hints": "import typing\nx: int = 1\ndef f(a: 'str'): ...\n"
        "print(typing.get_type_hints(f), __annotations__)",
    },
    "processes": {
        "multiprocessing": "import multiprocessing as m\ndef f(x): return x * x\nif __name__ == '__main__':\n"
        "    for way in ('fork', 'spawn'):\n        with m.get_context(way).Pool(2) as p: print(p.map(f, range(4)))",
        "process pool": "from concurrent.futures import ProcessPoolExecutor\ndef f(x): return x + 1\n"
        "if __name__ == '__main__':\n    with ProcessPoolExecutor(2) as p: print(list(p.map(f, range(3))))",
        "asyncio": "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n"
        "    return await asyncio.to_thread(lambda: 5)\n"
        "print(asyncio.run(f()))",
        "subprocess": "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'print(input())'],"
        " input=b'x', capture_output=True).stdout)",
    },
    "the process's own": {
        "signal handlers": "import signal\nprint([(s, signal.getsignal(s)) for s in signal.valid_signals()"
        " if signal.getsignal(s) and s != 2], signal.pthread_sigmask(0, ()))",
        "warning": "import warnings\nwarnings.warn('careful')\nwarnings.warn('old', DeprecationWarning)",
    },
    "standard input": {
        "line after line": "import sys\nfor line in sys.stdin: print(repr(line))",
        "input": "print(input('> '))\nprint(input())\nprint(input())",
        "stdin as bytes": "import sys\nprint(sys.stdin.buffer.read(), sys.stdin.isatty(), sys.stdin.encoding)",
    },
    "more exceptions": {
        "recursion": "import sys\ndef f(n): return f(n + 1)\ntry: f(0)\nexcept RecursionError as e: print(e)",
        "assertion": "assert 1 == 2, 'no'",
        "deep in a class body": "class A:\n    def m(self):\n        raise NotImplementedError('m')\nA().m()",
    },
}  # fmt: skip
STDIN = "one\ntwo ü"


def neutral(data: bytes, home: str) -> str:
    """Output without what must differ: the directory of the code and that of the standard library."""
    text = data.decode("utf-8", "backslashreplace").replace(home, "/sandbox")
    text = re.sub(r'"[^"\n]*/lib/python3\.\d+/', '"<lib>/', text)
    return re.sub(r"0x[0-9a-f]+", "0x…", text)


def on_the_host(code: str, home) -> tuple[int, str, str]:
    home.mkdir()
    main = home / "main.py"
    main.write_bytes(code.encode())
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, str(main)], input=STDIN.encode(), capture_output=True, cwd=home, env=environment, timeout=30
    )
    return done.returncode, neutral(done.stdout, str(home)), neutral(done.stderr, str(home))


def shown(run: Run) -> tuple[int | None, str, str]:
    code = run.verdict.exit_code if run.verdict.signal is None else -run.verdict.signal
    return code, neutral(run.stdout.data, "/sandbox"), neutral(run.stderr.data, "/sandbox")


@pytest.mark.parametrize("programs", GROUPS.values(), ids=GROUPS)
def test_as_python_main_py(sandbox, programs, tmp_path):
    runs = sandbox.all(*programs.values(), stdin=STDIN)
    in_sandboxes = dict(zip(programs, map(shown, runs), strict=True))
    assert in_sandboxes == {name: on_the_host(code, tmp_path / name) for name, code in programs.items()}


def test_a_traceback_is_the_codes_own(sandbox):
    """Spelled out once: nothing of ours is in it."""
    run = sandbox("def half(x):\n    return x / 0\n\nhalf(1)\n")
    assert run.stderr.data.decode().splitlines() == [
        "Traceback (most recent call last):",
        '  File "/sandbox/main.py", line 4, in <module>',
        "    half(1)",
        '  File "/sandbox/main.py", line 2, in half',
        "    return x / 0",
        "           ~~^~~",
        "ZeroDivisionError: division by zero",
    ]


def test_sources_that_are_no_text_are_the_interpreters_to_judge(sandbox):
    """A syntax error, in words that differ from one Python to the next; a NUL is a ValueError before 3.11.4."""
    for run in sandbox.all("print(1)\n\0print(2)", "print('\ud800')", "# -*- coding: klingon -*-\nprint(1)"):
        assert (run.verdict.exit_code, run.stdout.data) == (1, b"")
        assert re.search(rb"^(SyntaxError|ValueError): .", run.stderr.data, re.MULTILINE)
        assert b"Traceback" not in run.stderr.data


def test_every_exit_code_is_told_as_it_is(sandbox):
    codes = [0, 1, 2, 3, 124, 125, 126, 127, 128, 137, 139, 143, 255]
    runs = sandbox.all(*(f"import sys; sys.exit({code})" for code in codes))
    assert [run.verdict.exit_code for run in runs] == codes
    assert {run.verdict.signal for run in runs} == {None}
    assert [run.verdict.reason for run in runs] == [Reason.EXITED] + [Reason.EXITED_NONZERO] * (len(codes) - 1)


def test_every_fatal_signal_is_told_as_it_is(sandbox):
    fatal = ["SIGKILL", "SIGSEGV", "SIGTERM", "SIGABRT", "SIGINT", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGRTMIN"]
    program = "import os, signal\nsignal.signal(2, signal.SIG_DFL)\nos.kill(os.getpid(), signal.{})\nsignal.pause()"
    runs = sandbox.all(*(program.format(name) for name in fatal))
    assert [run.verdict.signal for run in runs] == [getattr(signal, name) for name in fatal]
    assert {run.verdict.exit_code for run in runs} == {None}
    assert {run.verdict.reason for run in runs} == {Reason.SIGNALED}
    assert runs[1].verdict.error == "killed by signal 11 (SIGSEGV)"


def test_ten_megabytes_of_code(sandbox):
    code = "#" * 10_000_000 + "\nimport os\nprint(os.path.getsize(__file__))\n1/0"
    run = sandbox(code)
    assert int(run.stdout.data) == len(code)
    assert b"line 4, in <module>" in run.stderr.data


@pytest.mark.parametrize("runtime", ["runc"], indirect=True)
def test_the_filter_refuses_sockets_to_the_kernels_ciphers_and_to_a_hypervisor(sandbox):
    """EPERM is the filter's word; a kernel without them says EAFNOSUPPORT."""
    code = (
        "import socket\nfor family in (38, 40):\n"
        "    try: socket.socket(family, 5)\n    except OSError as error: print(error.errno)"
    )
    assert sandbox(code).stdout.data == b"1\n1\n"
