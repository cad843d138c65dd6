"""The Docker Engine: its socket, its answer, its API, the images, and a canary on each runtime."""

import datetime as dt
import grp
import os
import pwd
import shutil
import socket
import stat
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crucible_worker.doctor.checks import Finding, failed, passed, skipped, warned
from crucible_worker.doctor.host import MAX_SKEW_SECONDS, NEED_CLOCK
from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.fleet import Fleet
from crucible_worker.engines.image_store import Found
from crucible_worker.engines.images import refusal
from crucible_worker.model import Language

OLDEST_API = (1, 41)
CALL_SECONDS = 10.0
CONNECT_SECONDS = 5.0
START = "start it (systemctl start docker), or set DOCKER_HOST"
HUNG = "systemctl restart docker, and read journalctl -u docker"
_NO_NETWORK = '"runtimeArgs": ["--network=none"]'


def reachable(url: str) -> Finding:
    """Something listens where the engine should be, and this user may speak to it."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return _socket(Path(url.removeprefix("unix://")))
    try:
        socket.create_connection((parts.hostname, parts.port), CONNECT_SECONDS).close()
    except OSError as error:
        return failed(f"{url}: {error.strerror or error}", START)
    return passed(f"{url} accepts connections")


def _socket(path: Path) -> Finding:
    try:
        about = path.stat()
        if not stat.S_ISSOCK(about.st_mode):
            return failed(f"{path} is not a socket", START)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(CONNECT_SECONDS)
            sock.connect(str(path))
    except PermissionError:
        return failed(f"{path}: this user may not use it ({_us()})", _permission(path))
    except BlockingIOError:
        return failed(f"{path} takes no more connections", HUNG)
    except OSError as error:
        return failed(f"{path}: {error.strerror or error}", START)
    return passed(f"{path} accepts connections of {_us()}")


def _permission(path: Path) -> str:
    try:
        gid = path.stat().st_gid
        group = grp.getgrgid(gid).gr_name
    except (OSError, KeyError):
        return "run the worker as a user that may reach the socket"
    if gid == 0:
        return f"give the socket a group (chgrp docker {path}) and add this user to it, or run the engine rootless"
    return f"usermod -aG {group} {_us()}, then log in again; in a container: --group-add {gid}"


def _us() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


class EngineChecks:
    """Asks one engine. Every method may raise DaemonGoneError or TaskError, whose words say what is wrong."""

    def __init__(self, url: str, fleet: Fleet, *, pull: str, allowed: Sequence[str]) -> None:
        """`fleet` runs the canaries; `pull` and `allowed` are the settings of images."""
        self._url = url
        self._fleet = fleet
        self._pull = pull
        self._allowed = allowed

    def answers(self) -> Finding:
        """It says its version in time."""
        version = self._ask(Daemon.version)
        return passed(f"Docker Engine {version.get('Version')} on {version.get('Os')}/{version.get('Arch')}")

    def api(self) -> Finding:
        """It speaks an API that is new enough."""
        text = str(self._ask(Daemon.version).get("ApiVersion") or "")
        version = tuple(int(part) for part in text.split(".") if part.isdecimal())
        words = f"API {text or 'unknown'}"
        if version < OLDEST_API:
            return failed(f"{words}; 1.41 or newer is needed", "upgrade it to Docker Engine 20.10 or newer")
        return passed(words)

    def image(self, name: str, language: Language) -> Finding:
        """The image of a language is on this host, and a sandbox may be made of it."""
        if words := refusal(language.image, self._allowed):
            return failed(words, "add it to CRUCIBLE_IMAGES_ALLOWED, or name another in CRUCIBLE_LANGUAGES")
        image = self._ask(lambda daemon: daemon.image(language.image))
        if image is None and self._pull == "missing":
            return warned(f"{language.image} is not on this host yet", "nothing to mend: the first task fetches it")
        if image is None:
            return failed(f"{language.image} is not on this host", _bring(name, language))
        version = self._ask(Daemon.version)
        found = Found(
            reference=language.image,
            image_id=str(image["Id"]),
            size=int(image["Size"]),
            platform=f"{image['Os']}/{image['Architecture']}",
            engine_platform=f"{version['Os']}/{version['Arch']}",
            volumes=tuple(sorted((image.get("Config") or {}).get("Volumes") or ())),
            set_id=(),
        )
        if problems := found.problems():
            mend = f"use another image (CRUCIBLE_LANGUAGES), or {_bring(name, language)}"
            return failed(f"{language.image} is unfit: {'; '.join(problems)}", mend)
        return passed(f"{language.image}, {found.image_id[:19]}, {found.size // 1_000_000} MB")

    def canary(self, name: str, runtime: str) -> Finding:
        """A program really runs in a sandbox of this engine."""
        known = self._ask(Daemon.info).get("Runtimes") or {}
        without = f"take {name} out of CRUCIBLE_ENGINES"
        if runtime not in known and "." not in runtime:
            path = shutil.which(runtime) or f"/usr/bin/{runtime}"
            entry = f'{{"runtimes": {{"{runtime}": {{"path": "{path}", {_NO_NETWORK}}}}}}}'
            return failed(
                f"the daemon has no runtime {runtime}; it knows {', '.join(sorted(known))}",
                f"install {runtime}, put {entry} into /etc/docker/daemon.json, systemctl reload docker; or {without}",
            )
        if self._fleet.probe(name):
            trouble = self._fleet.accounting_trouble()
            return passed(f"a canary ran on {runtime}" + (f" ({trouble})" if trouble else ""))
        detail = self._fleet.states()[name].detail
        return failed(detail, f"{_runtime_mend(detail, runtime)}; or {without}")

    def clock(self) -> Finding:
        """The engine's clock and ours agree: deadlines of sandboxes are compared with both."""
        try:
            theirs = dt.datetime.fromisoformat(str(self._ask(Daemon.info).get("SystemTime")))
        except ValueError:
            return skipped("it does not tell the time")
        skew = abs((dt.datetime.now(dt.UTC) - theirs.astimezone(dt.UTC)).total_seconds())
        words = f"{skew:.0f} s apart"
        return passed(words) if skew <= MAX_SKEW_SECONDS else warned(words, f"here or there, {NEED_CLOCK}")

    def swept(self, labels: Mapping[str, str]) -> Finding:
        """The canaries' sandboxes are gone."""
        self._fleet.close(CALL_SECONDS)
        return swept(self._url, labels)

    def room(self) -> Finding:
        """Where the engine keeps its files, there is room for more. Only of an engine on this host."""
        root = Path(str(self._ask(Daemon.info).get("DockerRootDir") or "/nonexistent"))
        if not self._url.startswith("unix://") or not root.is_dir():
            return passed("not on this host's disks")
        free = shutil.disk_usage(root).free
        words = f"{free >> 20} MiB free in {root}"
        return passed(words) if free >= 256 << 20 else warned(words, "docker system prune, or a larger disk")

    def _ask(self, question: Any) -> Any:  # noqa: ANN401 - JSON, as the daemon has it
        with closing(Daemon(self._url, CALL_SECONDS)) as daemon:
            return question(daemon)


def _bring(name: str, language: Language) -> str:
    if name == "python" and not language.command:
        return f"crucible-worker.pyz image build --tag {language.image}"
    return f"docker load -i FILE, or docker pull {language.image}"


def _runtime_mend(detail: str, runtime: str) -> str:
    """What mends a canary that failed, as far as its words tell."""
    if "network enabled" in detail:
        return f"give {runtime} {_NO_NETWORK} in /etc/docker/daemon.json, systemctl reload docker"
    if "seccomp profile" in detail:
        return "take seccomp-profile out of /etc/docker/daemon.json, systemctl restart docker"
    if "cannot limit" in detail:
        return "boot the host with cgroup version 2, or use an engine of root's"
    if "weakened" in detail:
        return "take out of /etc/docker/daemon.json, or the authorization plugin, what changes the sandbox"
    return f"docker run --rm --runtime {runtime} --network none IMAGE true, and read journalctl -u docker"


def swept(url: str, labels: Mapping[str, str]) -> Finding:
    """Whether all sandboxes with these labels are gone; those that are not are removed."""
    with closing(Daemon(url, CALL_SECONDS)) as daemon:
        late = [str(container["Id"]) for container in daemon.containers(labels)]
        for container in late:
            daemon.remove(container)
    if late:
        return warned(f"removed {len(late)} that took too long", "look at the engine's load: sandboxes are slow to end")
    return passed("no sandbox of this doctor is left")
