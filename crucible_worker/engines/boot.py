"""The program inside the sandbox: takes one frame, runs it as `python main.py` would, and says how it ended.

It is PID 1 there, and imports only what every Python has, and the modules that are its arguments. The conversation,
over the container's own streams:

    stdout  R                      the interpreter is up and waits for its frame
    stdin   code, stdin, arguments and files of the task (see `frames.python_frame`)
    stdout  S + 16 random bytes    the code starts now; all that follows is the code's own output
    stderr  the same 16 bytes: its end
    stdout  the same 16 bytes + E + exit code, or + K + signal number: the end of the output
    stdin   a line, or the end: the worker has counted what was used, and takes so many bytes and files of /sandbox/out
    stdout  those (see `artifacts.Collector`)

The random bytes come into being after the fork, so the code's process has never held them. They only tell a trailer
from output; what the trailer says is believed only where the daemon's own exit code agrees.
"""

import os
import signal
import struct
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PR_SET_DUMPABLE, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 4, 22, 2  # linux/prctl.h, linux/seccomp.h
# SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM, and with ENOSYS, which has C libraries take the older call
ALLOW, REFUSE, ABSENT = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38
LOAD, IF_EQUAL, IF_AT_LEAST, IF_ANY, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
NEW_NAMESPACES = 0x7E020000  # CLONE_NEW... (linux/sched.h)
AF_ALG, AF_VSOCK = 38, 40  # linux/socket.h: the kernel's ciphers, a hypervisor
CLONE3 = 435
# io_uring, and what mounts in other ways than mount(2)
REFUSED = (425, 426, 427, 428, 429, 430, 431, 432, 433, 442)
# The kernel's name of this architecture (linux/audit.h), its numbers of socket() and clone(), and those of mount,
# umount2, pivot_root, unshare, setns, add_key, request_key and keyctl.
ARCHITECTURES = {
    "x86_64": (0xC000003E, 41, 56, (165, 166, 155, 272, 308, 248, 249, 250)),
    "aarch64": (0xC00000B7, 198, 220, (40, 39, 41, 97, 268, 217, 218, 219)),
}

HOME = "/sandbox"
MAIN = HOME + "/main.py"
OUT = HOME + "/out"


def read(size: int) -> bytes:
    """Exactly `size` bytes of the frame; the worker's end of file means there is nothing to do."""
    parts = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            os._exit(0)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_sized() -> bytes:
    """A part of the frame that has its size before it."""
    return read(struct.unpack(">Q", read(8))[0])


def store(path: str, data: bytes) -> int:
    """A new file with `data`, open for reading from its start."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def supervise(child: int) -> int:
    """Wait for the code as PID 1 does, reaping orphans; then end whatever it left and return its wait status."""
    while True:
        pid, status = os.wait()
        if pid == child:
            break
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.wait()
    except OSError:
        return status


def system_call_filter(machine: str) -> bytes:
    """What some engines' default seccomp profiles leave open, Podman's most of all.

    That is io_uring, namespaces and mounts of one's own, kernel keys, sockets to a hypervisor, and foreign calls.

    A classic BPF program over struct seccomp_data (seccomp(2)); empty for an architecture that is not known.
    """
    if machine not in ARCHITECTURES:
        return b""
    architecture, socket, clone, more = ARCHITECTURES[machine]
    refused = [(LOAD, 0, 0, 4), (IF_EQUAL, 1, 0, architecture), (RETURN, 0, 0, REFUSE), (LOAD, 0, 0, 0)]
    # From here on, x86-64 has the same calls once more under other numbers (x32).
    refused += [(IF_AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, REFUSE)]
    for number in REFUSED + more:
        refused += [(IF_EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    refused += [(IF_EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ABSENT)]
    # Of clone() the first argument counts, of socket() too.
    refused += [(IF_EQUAL, 0, 4, clone), (LOAD, 0, 0, 16), (IF_ANY, 0, 1, NEW_NAMESPACES), (RETURN, 0, 0, REFUSE)]
    refused += [(RETURN, 0, 0, ALLOW), (IF_EQUAL, 1, 0, socket), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, 16)]
    refused += [(IF_EQUAL, 1, 0, AF_ALG), (IF_EQUAL, 0, 1, AF_VSOCK), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in refused)


def harden() -> "Callable[[], object]":
    """Narrow the system calls of this process and its children; returns what hides its own memory from them.

    A Python without ctypes goes without: both only add to what the container has.
    """
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return lambda: None
    program = system_call_filter(os.uname().machine)
    if program:
        buffer = ctypes.create_string_buffer(program)
        header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(header), 0, 0)
    return lambda: prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def hand_out(quota: int, count: int) -> None:
    """Send what is in /sandbox/out: at most `count` things, folders among them, and of files at most `quota` bytes."""
    folders = [OUT] if os.path.isdir(OUT) and not os.path.islink(OUT) else []
    while folders:
        folder = folders.pop()
        try:
            found = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in found:
            if not count:
                write_all(b"M.")
                return
            count -= 1
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
                continue
            kind, size, data = look(entry, quota)
            quota -= len(data)
            name = os.fsencode(os.path.relpath(entry.path, OUT))
            write_all(b"%s %d %d\n" % (kind, len(name), size) + name + data)
    write_all(b".")


def look(entry: "os.DirEntry[str]", room: int) -> "tuple[bytes, int, bytes]":
    """What one thing is: a letter for `artifacts.Collector`, its size, and its content where it is taken."""
    if entry.is_symlink():
        return b"L", 0, b""
    if not entry.is_file(follow_symlinks=False):
        return b"S", 0, b""
    size = entry.stat(follow_symlinks=False).st_size
    if size > room:
        return b"Q", size, b""
    try:
        with open(entry.path, "rb") as file:
            data = file.read(size)
    except OSError:
        return b"U", size, b""
    return b"F", len(data), data


def write_all(data: bytes, fd: int = 1) -> None:
    """Everything to the worker."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def become_program() -> None:
    """Turn this forked process into what the code expects to find itself in, as far as that needs no task."""
    os.setsid()
    try:
        # Out of memory shall hit the code, not the supervisor that reports it.
        with open("/proc/self/oom_score_adj", "w") as adjust:
            adjust.write("1000")
    except OSError:
        pass
    os.chdir(HOME)
    sys.path[0] = HOME
    # Lines reach the worker as they are printed, so a timeout shows how far the code came.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def take_task() -> bytes:
    """Read the frame, and lay out all that it brings. Returns the code."""
    code_size, stdin_size, arg_count, file_count, has_out = struct.unpack(">QQII?", read(25))
    source = read(code_size)
    os.close(store(MAIN, source))
    stdin_fd = store(HOME + "/.stdin", read(stdin_size))
    os.unlink(HOME + "/.stdin")
    args = [os.fsdecode(read_sized()) for _ in range(arg_count)]
    for _ in range(file_count):
        path = HOME + "/" + read_sized().decode()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(store(path, read_sized()))
    if has_out:
        os.makedirs(OUT, exist_ok=True)
    os.dup2(stdin_fd, 0)
    sys.argv = [MAIN, *args]
    sys.orig_argv = [sys.executable, MAIN, *args]
    return source


def execute(source: bytes) -> None:
    """Run `source` as the main module. Tracebacks begin at its own first frame."""
    import atexit
    from importlib.machinery import SourceFileLoader

    main = types.ModuleType("__main__")
    main.__dict__.update(
        __file__=MAIN,
        __cached__=None,
        __loader__=SourceFileLoader("__main__", MAIN),
        __builtins__=sys.modules["builtins"],
        __annotations__={},
    )
    sys.modules["__main__"] = main
    fatal: list[int] = []
    atexit.register(die_of, fatal)
    try:
        exec(compile(source, MAIN, "exec", dont_inherit=True), main.__dict__)
        return
    except SystemExit:
        raise
    except BaseException as caught:
        error = without_caller(caught)
    # Outside the handler, as the interpreter does it: a hook finds no exception in flight.
    report(error)
    if isinstance(error, KeyboardInterrupt):
        fatal.append(signal.SIGINT)
    raise SystemExit(1)


def without_caller(error: BaseException) -> BaseException:
    """A caught exception whose traceback begins behind the frame that caught it."""
    return error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)


def report(error: BaseException) -> None:
    """Show an uncaught exception as the interpreter would."""
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    try:
        sys.excepthook(type(error), error, error.__traceback__)
        return
    except SystemExit:
        raise
    except BaseException as caught:
        failure = without_caller(caught)
    sys.stderr.write("Error in sys.excepthook:\n")
    sys.__excepthook__(type(failure), failure, failure.__traceback__)
    sys.stderr.write("\nOriginal exception was:\n")
    sys.__excepthook__(type(error), error, error.__traceback__)


def die_of(signals: "list[int]") -> None:
    """End by a signal, if there is one. Registered before the code's own exit handlers, so it runs after them."""
    for number in signals:
        sys.stdout.flush()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def main() -> bytes:
    """Talk to the worker; returns in the child only, with the code to run.

    The child is there before the task, so that little is left to do between the frame and the code.
    """
    hide = harden()
    for module in sys.argv[1:]:
        __import__(module)
    laid_out, lay_out = os.pipe()
    start_read, start_write = os.pipe()
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    child = os.fork()
    if child == 0:
        become_program()
        os.write(1, b"R")
        source = take_task()
        os.write(lay_out, b"!")
        os.close(start_write)
        os.read(start_read, 1)
        os.closerange(3, 256)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return source
    # Otherwise code of the same user could trace its supervisor, and speak with its voice.
    hide()
    os.close(lay_out)
    if not os.read(laid_out, 1):
        # It has said why on stderr, or there was no task.
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)
    secret = os.urandom(16)
    os.write(1, b"S" + secret)
    os.close(start_write)
    status = supervise(child)
    os.set_blocking(1, True)
    os.set_blocking(2, True)
    write_all(secret, 2)
    killer = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    code = 128 + killer if killer else os.WEXITSTATUS(status)
    os.write(1, secret + (b"K" + bytes([killer]) if killer else b"E" + bytes([code])))
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            os._exit(code)
        line += part
    quota, count = map(int, line.split())
    if quota:
        hand_out(quota, count)
    os._exit(code)


if __name__ == "__main__":
    execute(main())
