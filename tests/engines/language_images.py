"""Sandbox images of other languages, packed from what Debian's packages have put on this host."""

import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from precondition import unavailable

SHELL_TOOLS = ("cat", "dd", "mkdir", "od", "rm", "tr", "wc")
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/sandbox:/bin/sh\n"


def program(name: str) -> Path:
    """A program of this host."""
    found = shutil.which(name)
    return Path(found) if found else unavailable(f"this host has no {name}")


def pack(files: dict[str, Path | bytes], links: dict[str, str] | None = None) -> bytes:
    """A root file system with these files and links, the shared libraries of the programs among them included."""
    wanted = dict(files)
    for source in files.values():
        if isinstance(source, Path) and source.read_bytes()[:4] == b"\x7fELF":
            told = subprocess.run(["ldd", source], capture_output=True, text=True).stdout
            wanted |= {path: Path(path).resolve() for path in re.findall(r"(/\S+) \(0x", told)}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder in ("dev", "proc", "sys", "tmp", "sandbox"):
            tar.addfile(_entry(folder, tarfile.DIRTYPE))
        for path, source in {**wanted, "/etc/passwd": PASSWD}.items():
            data = source if isinstance(source, bytes) else source.read_bytes()
            info = _entry(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for path, target in (links or {}).items():
            info = _entry(path, tarfile.SYMTYPE)
            info.linkname = target
            tar.addfile(info)
    return out.getvalue()


def _entry(path: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path.lstrip("/"))
    info.type, info.mode = kind, 0o755
    return info


def busybox() -> bytes:
    """One static program for everything."""
    tools = {f"/bin/{name}": "busybox" for name in ("sh", "sleep", "ln", "mkfifo", "kill", "seq", *SHELL_TOOLS)}
    return pack({"/bin/busybox": program("busybox")}, tools)


def dash_and(*programs: str) -> dict[str, Path | bytes]:
    """Debian's shell and tools, and some more."""
    return {f"/bin/{name}": program(name).resolve() for name in SHELL_TOOLS} | {
        "/bin/sh": program("dash").resolve(),
        **{f"/usr/bin/{name}": program(name).resolve() for name in programs},
    }


def node() -> bytes:
    """JavaScript."""
    return pack(dash_and("node"))


def c_compiler() -> bytes:
    """C, compiled by tcc against Debian's C library."""
    libraries = Path(subprocess.run(["tcc", "-print-search-dirs"], capture_output=True, text=True).stdout.split()[1])
    home = libraries if libraries.is_dir() else Path("/usr/lib/x86_64-linux-gnu/tcc")
    start = [
        path
        for name in ("crt1.o", "crti.o", "crtn.o", "libc.so", "libc_nonshared.a", "ld-linux*.so.*")
        for path in _found(name)
    ]
    headers = Path("/usr/include")
    wanted = [*start, *home.rglob("*"), *headers.glob("*.h")]
    for folder in ("bits", "gnu", "sys", "asm", "asm-generic", "linux"):
        wanted += [*(headers / folder).rglob("*.h"), *headers.glob(f"*-linux-gnu/{folder}/**/*.h")]
    files = {str(path): path for path in wanted if path.is_file()}
    if not start:
        return unavailable("this host has no libc6-dev")
    return pack(dash_and("tcc") | files)


def _found(name: str) -> list[Path]:
    return [path for path in Path("/usr/lib").glob(f"*-linux-gnu/{name}") if os.access(path, os.R_OK)]
