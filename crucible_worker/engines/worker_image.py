"""What a container image of the worker itself holds: a Python of this host, and the .pyz, unpacked and compiled.

So it may run with a read-only root, and needs no registry, no Dockerfile and no Docker Engine to be made.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from crucible_worker import __version__
from crucible_worker.engines.rootfs import Entry
from crucible_worker.errors import ExitCode, ExitError

USER = 65532  # "nonroot" of the distroless images
HOME = "opt/crucible"
STATE = "var/lib/crucible-worker"
_SECONDS = 300
_UNPACKED = "unpacked"

CONFIG: Mapping[str, object] = {
    "User": f"{USER}:{USER}",
    "Env": ["PATH=/usr/local/bin", "LANG=C.UTF-8", f"SHIV_ROOT=/{HOME}/{_UNPACKED}"],
    # -I: neither the environment nor the working directory decides what is imported. -u: logs leave at once.
    "Entrypoint": ["/usr/local/bin/python3", "-I", "-u", f"/{HOME}/crucible-worker.pyz"],
    "ExposedPorts": {"8082/tcp": {}},
    "Healthcheck": {
        "Test": ["CMD", "/usr/local/bin/python3", "-I", f"/{HOME}/crucible-worker.pyz", "healthcheck"],
        "Interval": 30_000_000_000,
        "Timeout": 5_000_000_000,
        "StartPeriod": 30_000_000_000,
        "Retries": 3,
    },
    "Labels": {
        "org.opencontainers.image.title": "crucible-worker",
        "org.opencontainers.image.description": "Pulls evaluation tasks and runs untrusted code in sandboxes",
        "org.opencontainers.image.version": __version__,
    },
}


def running_archive() -> Path:
    """The .pyz that runs us. Raises ExitError (64) where that is no archive."""
    archive = Path(sys.argv[0]).resolve()
    if not archive.is_file() or archive.suffix != ".pyz":
        raise ExitError(ExitCode.USAGE, "--worker packs the .pyz that runs it; build that first, and start it.")
    return archive


def entries(archive: Path, executable: str, folder: Path) -> dict[str, Entry]:
    """What is added to a Python's image; `folder` is an empty one for the unpacked files.

    Raises ExitError (64) where that Python cannot run the archive.
    """
    unpacked = folder / _UNPACKED
    environment = {"SHIV_ROOT": str(unpacked), "PATH": os.defpath, "HOME": str(folder)}
    # The .pyc of an image must hold whatever time its files bear there (PEP 552).
    compiling = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(folder), "-p", f"/{HOME}"]
    _run([executable, "-I", "-B", str(archive), "version"], environment)
    _run([executable, "-I", *compiling, str(unpacked)], environment)
    tree = {
        "etc/passwd": Entry(
            b"root:x:0:0:root:/root:/sbin/nologin\n"
            b"nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n"
            b"nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n"
        ),
        "etc/group": Entry(b"root:x:0:\nnogroup:x:65534:\nnonroot:x:65532:\n"),
        "etc/nsswitch.conf": Entry(b"passwd: files\ngroup: files\nhosts: files dns\n"),
        "usr/bin/python3": Entry(link="/usr/local/bin/python3"),  # where distroless images have it
        STATE: Entry(mode=0o700, owner=USER),
        f"{HOME}/crucible-worker.pyz": Entry(archive, mode=0o755),
    }
    for path in unpacked.rglob("*"):
        place = f"{HOME}/{path.relative_to(folder)}"
        if path.is_dir():
            tree[place] = Entry(mode=0o755)
        elif not path.name.endswith("_lock"):
            tree[place] = Entry(path)
    return tree


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own interpreter, and this program
            command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExitError(ExitCode.USAGE, f"{command[0]} cannot be started: {error}.") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ExitError(ExitCode.USAGE, f"{command[0]} cannot run the worker: {last[:200]}")
