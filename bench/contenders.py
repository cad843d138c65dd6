"""Who is compared: this worker's sandboxes, the Docker CLI and SDK with the same hardening, and other sandboxes."""

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from crucible_worker.engines import policy
from crucible_worker.engines.cgroups import Cgroups
from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.follow import Nobody, Witness
from crucible_worker.engines.prepared import Prepared
from crucible_worker.engines.runtimes import makes_loopback
from crucible_worker.engines.sandbox import Job, Sandboxes
from crucible_worker.engines.undertaker import Undertaker
from crucible_worker.model import Language, Limits, Reason

LIMITS = Limits(timeout_seconds=30.0)
LABELS = {"crucible.worker": "bench"}
READ = "exec(compile(__import__('sys').stdin.read(), 'main.py', 'exec'))"


@dataclass(frozen=True)
class Sample:
    """One program run once: how long, and how many bytes of output came back."""

    ms: float
    size: int


class Contender(Protocol):
    """Something that runs a program in a fresh sandbox."""

    name: str

    def run(self, code: str) -> Sample:
        """From the call to the result. May be called by several threads. Raises RuntimeError."""

    def settle(self) -> None:
        """Wait for the clean-up of what has run."""

    def close(self) -> None:
        """Leave nothing behind."""


class Crucible:
    """A cold sandbox, as a worker makes one for a task."""

    name = "crucible cold"

    def __init__(self, url: str, image: str, runtime: str) -> None:
        self.daemon = Daemon(url)
        self._language = Language(image)
        self._undertaker = Undertaker(self.daemon.close)
        self._sandboxes = Sandboxes(
            self.daemon, runtime, self._undertaker, Cgroups("bench", self.daemon.info, self.daemon.url)
        )

    def prepare(self) -> Prepared | None:
        """What may be done before the task comes: nothing."""
        return None

    def spend(self, code: str, prepared: Prepared | None, witness: Witness | None = None) -> Sample:
        """From the task to its verdict."""
        began = time.perf_counter()
        job = Job(code, "", self._language, LIMITS, LABELS)
        run = self._sandboxes.run(job, threading.Event(), witness or Nobody(), prepared)
        if run.verdict.reason is not Reason.EXITED:
            raise RuntimeError(f"{run.verdict.reason}: {run.stderr.data[-200:]!r}")
        return Sample((time.perf_counter() - began) * 1000, run.stdout.total_bytes)

    def run(self, code: str) -> Sample:
        return self.spend(code, self.prepare())

    def settle(self) -> None:
        self._undertaker.finish(120)

    def close(self) -> None:
        self._undertaker.close(120)
        self.daemon.close()


class Lean(Crucible):
    """The same, with the setting loopback=runtime."""

    name = "crucible cold, own loopback"

    def __init__(self, url: str, image: str, runtime: str) -> None:
        super().__init__(url, image, runtime)
        self._sandboxes.own_loopback = makes_loopback(self.daemon.info(), runtime)


class Warm(Crucible):
    """A sandbox that waits for its task; making it is not counted in a sample, but in the tasks a second."""

    name = "crucible warm"

    def prepare(self) -> Prepared:
        prepared = self._sandboxes.prepare(self._language, LIMITS, LABELS)
        if not prepared.is_up(30):
            raise RuntimeError("a warm sandbox did not come up")
        return prepared


class Cli:
    """`docker run` with every control of the policy that it has a flag for."""

    name = "docker run"

    def __init__(self, url: str, image: str, runtime: str) -> None:
        host = policy.container_config(image=image, runtime=runtime, limits=LIMITS, labels=LABELS, boot="")
        self._command = ["docker", "--host", url, "run", "--rm", "--interactive", *flags(host["HostConfig"])]
        self._command += [
            "--user", policy.USER, "--workdir", "/sandbox", "--hostname", "sandbox", "--no-healthcheck",
            "--label", "crucible.worker=bench", "--entrypoint", "python3", image, "-c", READ,
        ]  # fmt: skip

    def run(self, code: str) -> Sample:
        began = time.perf_counter()
        done = subprocess.run(self._command, input=code.encode(), capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-300:].decode())
        return Sample((time.perf_counter() - began) * 1000, len(done.stdout))

    def settle(self) -> None:
        """There is nothing left to do."""

    def close(self) -> None:
        """Every container has removed itself."""


def flags(host: Mapping[str, Any]) -> list[str]:
    """The flags of `docker run` for a HostConfig of the policy."""
    given = [
        f"--runtime={host['Runtime']}", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only",
        "--network=none", "--ipc=private", "--cgroupns=private", f"--memory={host['Memory']}",
        f"--memory-swap={host['MemorySwap']}", f"--oom-score-adj={host['OomScoreAdj']}",
        f"--cpus={host['NanoCpus'] / 1e9}", f"--pids-limit={host['PidsLimit']}", f"--shm-size={host['ShmSize']}",
        "--log-driver=none", "--restart=no",
    ]  # fmt: skip
    given += [f"--tmpfs={path}:{options}" for path, options in host["Tmpfs"].items()]
    return given + [f"--ulimit={limit['Name']}={limit['Soft']}:{limit['Hard']}" for limit in host["Ulimits"]]


class Sdk:
    """The Docker SDK by hand: create, attach, start, write, read, wait, remove, with the policy's configuration."""

    name = "docker SDK"

    def __init__(self, url: str, image: str, runtime: str) -> None:
        self._url = url
        self._config = policy.container_config(image=image, runtime=runtime, limits=LIMITS, labels=LABELS, boot=READ)
        self._local = threading.local()

    def run(self, code: str) -> Sample:
        began = time.perf_counter()
        client = self._client()
        container = client.create_container_from_config(self._config)["Id"]
        stream = client.attach_socket(container, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
        client.start(container)
        sock = stream._sock  # noqa: SLF001 - docker-py has no public way to a raw stream
        sock.sendall(code.encode())
        sock.shutdown(1)
        size = 0
        while data := sock.recv(1 << 18):
            size += len(data)
        stream.close()
        code_of_exit = client.wait(container)["StatusCode"]
        client.remove_container(container, v=True)
        if code_of_exit:
            raise RuntimeError(f"exit code {code_of_exit}")
        return Sample((time.perf_counter() - began) * 1000, size)

    def _client(self) -> Any:
        import docker

        if not hasattr(self._local, "client"):
            self._local.client = docker.APIClient(base_url=self._url, version="auto")
        return self._local.client

    def settle(self) -> None:
        """There is nothing left to do."""

    def close(self) -> None:
        """Every container has been removed."""


class Peer:
    """Another sandbox, in a process and an environment of its own."""

    def __init__(self, name: str, python: Path, image: str, runtime: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("peers.py"), name, image, runtime],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def run(self, code: str) -> Sample:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            try:
                print(json.dumps({"code": code}), file=self._process.stdin, flush=True)
            except BrokenPipeError:
                raise RuntimeError("it has ended") from None
            answer = json.loads(self._process.stdout.readline() or '{"error": "it has ended"}')
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return Sample(answer["ms"], answer["bytes"])

    def settle(self) -> None:
        """There is nothing left to do."""

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
