"""What a sandbox is sent: one frame with all that a task brings, for either of the two programs that take it. Pure."""

import shlex
import struct
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

HOME = "/sandbox"
OUT = f"{HOME}/out"
STDIN = "/tmp/.stdin"  # noqa: S108 - in the sandbox


def python_frame(
    code: bytes, stdin: bytes = b"", args: Sequence[bytes] = (), files: Mapping[str, bytes] | None = None, *, out: bool
) -> bytes:
    """The frame that `boot.py` takes.

    First the sizes of code and stdin, how many arguments and files follow, and whether the folder for artifacts is to
    be made; then each part. An argument, a name and a content have their size before them.
    """
    contents = files or {}
    head = struct.pack(">QQII?", len(code), len(stdin), len(args), len(contents), out)
    parts = [*args, *(part for name, content in contents.items() for part in (name.encode(), content))]
    return head + code + stdin + b"".join(struct.pack(">Q", len(part)) + part for part in parts)


def shell_frame(
    command: Sequence[str],
    file: str,
    code: bytes,
    stdin: bytes = b"",
    args: Sequence[bytes] = (),
    files: Mapping[str, bytes] | None = None,
    *,
    out: bool,
) -> bytes:
    """The frame that `boot.sh` takes: a line with the size of a script, the script, and what it `take`s, in order."""
    contents = {**(files or {}), file: code}
    folders = sorted({str(PurePosixPath(HOME, name).parent) for name in contents} - {HOME})
    lines = [b"mkdir -p " + _quoted(folder.encode()) for folder in [*folders, *([OUT] if out else [])]]
    lines += [b"take %d %s" % (len(data), _quoted(f"{HOME}/{name}".encode())) for name, data in contents.items()]
    lines += [b"take %d %s" % (len(stdin), _quoted(STDIN.encode()))]
    lines += [b"set -- " + b" ".join(_quoted(word) for word in [*(word.encode() for word in command), *args])]
    script = b"\n".join(lines) + b"\n"
    return b"%d\n" % len(script) + script + b"".join(contents.values()) + stdin


def _quoted(word: bytes) -> bytes:
    """A word as a shell reads it back, whatever bytes it has."""
    return shlex.quote(word.decode("latin-1")).encode("latin-1")
