"""A Docker Engine of our own, to be tortured."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from precondition import unavailable
from scripted_server import PATIENCE
from worker_process import clean_environment


class PrivateDocker:
    """A dockerd without networks, in a directory of its own. The path is short: it holds Unix sockets."""

    def __init__(self, root: Path, defaults: Mapping[str, object] | None = None, within: Sequence[str] = ()) -> None:
        """`defaults` are what its daemon.json says."""
        self.defaults = dict(defaults or {})
        self._within = within
        self.socket = f"{root}/docker.sock"
        self.host = f"unix://{self.socket}"
        self.data = root / "data"
        self._root = root
        self._process: subprocess.Popen | None = None
        self._log: threading.Thread | None = None

    def start(self) -> None:
        """Start it, and return when it takes calls. On a busy host it may give up on its own containerd: then again."""
        for _ in range(3):
            said = self._start()
            if said is None:
                return
            self._ended()
        raise RuntimeError(f"dockerd did not start: {said}")

    def _start(self) -> str | None:
        root = self._root
        (root / "daemon.json").write_text(json.dumps(self.defaults))
        # In a network of its own: one that is to have no bridge removes docker0, which is another's.
        self._process = subprocess.Popen(
            [
                *self._within, "unshare", "--net", "dockerd", "--config-file", f"{root}/daemon.json",
                "-H", self.host, "--data-root", str(self.data), "--exec-root", f"{root}/exec",
                "--pidfile", f"{root}/pid", "--bridge=none", "--iptables=false",
            ],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        said = []
        for line in self._process.stderr:
            said.append(line)
            if "API listen on" in line:
                break
        else:
            return "".join(said[-5:])
        # What it says from here on must be read, or it stops at a full pipe.
        self._log = threading.Thread(target=self._process.stderr.read)
        self._log.start()
        return None

    def kill(self) -> None:
        self._process.kill()
        self._ended()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._ended()

    def freeze(self) -> None:
        """Nothing answers any more, and no connection ends."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def _ended(self) -> None:
        self._process.wait(PATIENCE)
        if self._log is not None:
            self._log.join()
            self._log = None
        self._process.stderr.close()
        self._process = None

    def build_image(self) -> None:
        command = [sys.executable, "-m", "crucible_worker", "image", "build", "--docker-host", self.host]
        subprocess.run(command, check=True, capture_output=True, env=clean_environment())


@contextmanager
def private_docker(
    defaults: Mapping[str, object] | None = None, within: Sequence[str] = (), disk: str = ""
) -> Iterator[PrivateDocker]:
    """One that runs and has the sandbox image; started by `within`, with a disk of its own of size `disk`, if given."""
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        unavailable("a Docker Engine of our own needs dockerd and root")
    root = Path(tempfile.mkdtemp(prefix="cw-"))
    root.chmod(0o711)  # the users that it may map must get through
    docker = PrivateDocker(root, defaults, within)
    docker.data.mkdir()
    if disk:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={disk}", "tmpfs", str(docker.data)], check=True)
    try:
        docker.start()
        docker.build_image()
        yield docker
    finally:
        docker.stop()
        subprocess.run(["umount", "-R", str(docker.data), f"{root}/exec/netns"], check=False, capture_output=True)
        shutil.rmtree(root, ignore_errors=True)
