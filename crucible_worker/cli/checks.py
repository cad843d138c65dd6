"""What has to be right before a worker can work: a small check each, in the order in which they need each other."""

import datetime as dt
import os
import shutil
import socket
import ssl
import stat
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import crucible_worker
from crucible_worker import statefile
from crucible_worker.cli import composition
from crucible_worker.engines.daemon import Daemon, DaemonGoneError
from crucible_worker.engines.images import refusal
from crucible_worker.errors import ExitError, KeyRefusedError, RejectedError, RetryError, TaskError
from crucible_worker.events.redis_pubsub import RedisPubSub
from crucible_worker.settings import Loaded, Settings
from crucible_worker.transport import proxy_of, tls_context

PASS, FAIL, WARN, SKIP = "pass", "fail", "warn", "skip"
OLDEST_PYTHON = (3, 11)
OLDEST_API = (1, 41)  # Docker Engine 20.10
CLOCK_SECONDS = 60.0
CHECK_SECONDS = 15.0
CANARY_SECONDS = 60.0
_CALL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, what was found, and the command or setting that mends it."""

    name: str
    outcome: str
    found: str
    mend: str = ""


class _NotWellError(Exception):
    """A check has failed."""

    def __init__(self, found: str, mend: str, outcome: str = FAIL) -> None:
        super().__init__(found)
        self.check = (outcome, found, mend)


class Examination:
    """All checks of one set-up. Each is bounded in time, and skipped where one that it builds on has failed."""

    def __init__(self, loaded: Loaded, check_seconds: float = CHECK_SECONDS) -> None:
        self._loaded = loaded
        self._settings: Settings = loaded.settings
        self._seconds = check_seconds
        self._failed: set[str] = set()
        self._daemon = Daemon(self._settings.docker_host, min(_CALL_SECONDS, check_seconds))

    def run(self) -> Iterator[Check]:
        """Every check, as it is done."""
        settings = self._settings
        yield self._check("python", self._python)
        yield self._check("unpack directory", self._unpacked)
        yield self._check("state directory", self._state)
        yield self._check("disk", self._disk, "state directory")
        yield self._check("engine socket", self._socket)
        yield self._check("engine API", self._api, "engine socket")
        yield self._check("clock", self._clock, "engine API")
        for name in settings.languages:
            yield self._check(f"image of {name}", partial(self._image, name), "engine API")
        first = f"image of {next(iter(settings.languages))}"
        for name in settings.engines:
            yield self._check(f"engine {name}", partial(self._engine, name), "engine API", first, slow=True)
        yield self._check("certificates", self._certificates)
        yield from self._peer("queue", settings.queue_url)
        yield self._check("queue key", self._queue, "queue TLS", "queue connection", "queue address", "certificates")
        yield from self._bus()

    def engine_works(self) -> bool:
        """Whether any engine has passed."""
        return any(f"engine {name}" not in self._failed for name in self._settings.engines)

    def _check(self, name: str, look: Callable[[], str], *needs: str, slow: bool = False) -> Check:
        missing = [need for need in needs if need in self._failed]
        if missing:
            self._failed.add(name)
            return Check(name, SKIP, f"needs: {missing[0]}")
        outcome, found, mend = self._bounded(look, CANARY_SECONDS if slow else self._seconds)
        if outcome == FAIL:
            self._failed.add(name)
        return Check(name, outcome, found, mend)

    @staticmethod
    def _bounded(look: Callable[[], str], seconds: float) -> tuple[str, str, str]:
        """Look, on a thread of its own: whatever hangs there must not hang the rest."""
        answers: list[tuple[str, str, str]] = []

        def run() -> None:
            try:
                answers.append((PASS, look(), ""))
            except _NotWellError as error:
                answers.append(error.check)
            except Exception as error:  # noqa: BLE001 - a defect here must not hide the other checks
                answers.append((FAIL, f"{type(error).__name__}: {error}", "a defect of doctor; please report it"))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds)
        late = (FAIL, f"no answer within {seconds:.0f} seconds", "see whether the other side hangs, and restart it")
        return answers[0] if answers else late

    # --- this host --------------------------------------------------------------------------------------------

    def _python(self) -> str:
        if sys.version_info < OLDEST_PYTHON:
            raise _NotWellError(sys.version.split()[0], "run the worker with Python 3.11 or newer")
        return f"{sys.version.split()[0]} at {sys.executable}"

    def _unpacked(self) -> str:
        """Whether somebody else could have put code where ours is run from."""
        here = Path(crucible_worker.__file__).resolve().parent
        for folder in (here, *here.parents):
            seen = folder.stat()
            shared = bool(seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and not seen.st_mode & stat.S_ISVTX
            if seen.st_uid not in {0, os.geteuid()} or (shared and folder != Path("/")):
                words = f"{folder} can be written by others"
                raise _NotWellError(words, "set SHIV_ROOT to a directory that only this user may write", WARN)
        return str(here)

    def _state(self) -> str:
        directory = self._settings.state_dir
        if directory == statefile.MEMORY:
            raise _NotWellError("results are kept in memory", "set CRUCIBLE_STATE_DIR to a directory on disk", WARN)
        mend = "set CRUCIBLE_STATE_DIR to a directory that this user may write, or make that one"
        path = Path(directory)
        if not path.exists():
            parent = next(folder for folder in path.parents if folder.exists())
            if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
                raise _NotWellError(f"{directory} is not there, and {parent} cannot be written", mend)
            return f"{directory} will be made"
        try:
            os.close(statefile.lock_directory(directory))
        except ExitError:
            raise _NotWellError(
                f"a worker is using {directory}", "give each worker a CRUCIBLE_STATE_DIR", WARN
            ) from None
        except OSError as error:
            raise _NotWellError(f"{directory} cannot be written: {error.strerror}", mend) from None
        return directory

    def _disk(self) -> str:
        if self._settings.state_dir == statefile.MEMORY:
            return "not needed"
        path = Path(self._settings.state_dir)
        free = shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free
        if free < self._settings.disk_reserve:
            words = f"{free >> 20} MB free, of which {self._settings.disk_reserve >> 20} MB must stay"
            raise _NotWellError(words, f"make room on the disk of {path}, or lower CRUCIBLE_DISK_RESERVE")
        return f"{free >> 20} MB free"

    # --- the engine -------------------------------------------------------------------------------------------

    def _socket(self) -> str:
        host = self._settings.docker_host
        parts = urllib.parse.urlsplit(host)
        if parts.scheme != "unix":
            return f"{host} is not on this host"
        path = parts.path
        try:
            if not stat.S_ISSOCK(Path(path).stat().st_mode):
                raise _NotWellError(f"{path} is not a socket", "set DOCKER_HOST to the engine's, such as unix:///run/…")
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(self._seconds / 2)
                connection.connect(path)
        except FileNotFoundError:
            mend = "start the engine ('systemctl start docker'), or set DOCKER_HOST to its socket"
            raise _NotWellError(f"there is no {path}", mend) from None
        except PermissionError:
            mend = (
                "run the worker as a user of the socket's group ('usermod -aG docker USER'), or use a rootless engine"
            )
            raise _NotWellError(f"user {os.geteuid()} may not use {path}", mend) from None
        except OSError as error:
            mend = "restart the engine ('systemctl restart docker')"
            raise _NotWellError(f"nobody answers at {path}: {error.strerror or error}", mend) from None
        return path

    def _api(self) -> str:
        try:
            version = self._daemon.version()
        except (DaemonGoneError, TaskError) as error:
            mend = "see the engine's log ('journalctl -u docker'), and restart it"
            raise _NotWellError(str(error), mend) from None
        spoken = str(version.get("ApiVersion", "0.0"))
        if tuple(map(int, spoken.split("."))) < OLDEST_API:
            raise _NotWellError(f"it speaks API {spoken}", "install Docker Engine 20.10 or newer, or Podman 4 or newer")
        return f"{_engine_name(version)} {version.get('Version')}, API {spoken}"

    def _clock(self) -> str:
        theirs = str(self._daemon.info().get("SystemTime") or "")
        try:
            off = time.time() - dt.datetime.fromisoformat(theirs).timestamp()
        except ValueError:
            return "the engine does not tell the time"
        if abs(off) > CLOCK_SECONDS:
            mend = "set both clocks with NTP: deadlines of sandboxes are compared with this one"
            raise _NotWellError(f"{abs(off):.0f} seconds apart from the engine's", mend, WARN)
        return f"within {CLOCK_SECONDS:.0f} seconds of the engine's"

    def _image(self, name: str) -> str:
        image = self._settings.languages[name].image
        if words := refusal(image, self._settings.images_allowed):
            raise _NotWellError(words, "add it to CRUCIBLE_IMAGES_ALLOWED, or set another in CRUCIBLE_LANGUAGES")
        try:
            found = self._daemon.image(image)
        except (DaemonGoneError, TaskError) as error:
            raise _NotWellError(str(error), "set its name right in CRUCIBLE_LANGUAGES") from None
        if found is None:
            if self._settings.pull == "missing":
                raise _NotWellError(f"{image} is not here yet", "it will be pulled with the first task", WARN)
            default = image == "crucible-sandbox:python"
            mend = (
                "make it: 'crucible-worker.pyz image build'"
                if default
                else f"load it: 'docker load' or 'docker pull {image}'"
            )
            raise _NotWellError(f"{image} is not on this host", mend)
        volumes = (found.get("Config") or {}).get("Volumes")
        if volumes:
            mend = "make an image without VOLUME: what code writes there would outlive it"
            raise _NotWellError(f"{image} declares volumes ({', '.join(volumes)})", mend)
        return f"{image}, {str(found.get('Id'))[:19]}"

    def _engine(self, name: str) -> str:
        runtime = self._settings.engines[name]
        fleet = composition.fleet(self._settings, "doctor")
        try:
            known = self._daemon.info().get("Runtimes") or {}
            if runtime not in known and "." not in runtime:
                mend = (
                    f"install {runtime}, add it to /etc/docker/daemon.json, restart the engine; or set CRUCIBLE_ENGINES"
                )
                raise _NotWellError(f"the engine has no runtime {runtime}; it has {', '.join(known)}", mend)
            if not fleet.probe(name):
                mend = 'see the engine\'s log; runsc may need "runtimeArgs": ["--network=none"] in daemon.json'
                raise _NotWellError(fleet.states()[name].detail, mend)
        except (DaemonGoneError, TaskError) as error:
            raise _NotWellError(str(error), "see the engine's log") from None
        finally:
            fleet.close(_CALL_SECONDS)
        return f"a sandbox has run on {runtime}"

    # --- the queue and the bus --------------------------------------------------------------------------------

    def _certificates(self) -> str:
        try:
            tls_context(self._settings.ca_file, self._settings.client_cert, self._settings.client_key)
        except ExitError as error:
            raise _NotWellError(str(error), "set CRUCIBLE_CA_FILE, _CLIENT_CERT and _CLIENT_KEY to PEM files") from None
        return self._settings.ca_file or "the system's"

    def _peer(self, name: str, url: str) -> Iterator[Check]:
        """Address, connection and TLS of an HTTP peer."""
        parts = urllib.parse.urlsplit(url)
        proxy = proxy_of(url)
        if proxy:
            parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
        host, port = parts.hostname or "", _port(parts)
        via = f" (the proxy that the environment names for {name})" if proxy else ""
        mend = f"{'unset HTTP_PROXY or add the queue to NO_PROXY' if proxy else 'set ' + _variable(name)}"
        yield self._check(f"{name} address", lambda: _resolved(host, port, via, mend))
        yield self._check(f"{name} connection", lambda: _connected(host, port, via, mend), f"{name} address")
        if parts.scheme == "https":
            yield self._check(
                f"{name} TLS", lambda: self._tls(host, port), f"{name} address", f"{name} connection", "certificates"
            )

    def _tls(self, host: str, port: int) -> str:
        context = tls_context(self._settings.ca_file, self._settings.client_cert, self._settings.client_key)
        try:
            with (
                socket.create_connection((host, port), _CALL_SECONDS) as plain,
                context.wrap_socket(plain, server_hostname=host) as wrapped,
            ):
                return str(wrapped.version())
        except ssl.SSLCertVerificationError as error:
            mend = "set CRUCIBLE_CA_FILE to the certificate of its authority; its name and dates must fit, too"
            raise _NotWellError(f"its certificate is not trusted: {error.verify_message}", mend) from None
        except (ssl.SSLError, OSError) as error:
            mend = "use http:// if that port does not speak TLS"
            raise _NotWellError(f"no TLS: {getattr(error, 'reason', None) or error}", mend) from None

    def _queue(self) -> str:
        key = composition.KeptSecret(self._loaded, "api_key")
        transport = composition.transport(self._settings, key)
        url = f"{self._settings.queue_url}/status"
        try:
            answer = transport.request("GET", url, deadline=min(_CALL_SECONDS, self._seconds)).check()
            answer.json()
        except KeyRefusedError as error:
            given = "with the key" if key() else "without a key"
            raise _NotWellError(f"{url} {error} ({given})", "set API_KEY_FILE to a file with the queue's key") from None
        except (RetryError, RejectedError) as error:
            mend = "set QUEUE_SERVICE_URL to the Queue Service itself; something else may answer there"
            raise _NotWellError(f"{url} {error}", mend) from None
        return f"{url} answers {answer.status}"

    def _bus(self) -> Iterator[Check]:
        url = self._settings.event_bus_url or self._settings.api_url
        if url == "none":
            yield Check("event bus", SKIP, "no events are wanted")
        elif urllib.parse.urlsplit(url).scheme.startswith("redis"):
            yield self._check("event bus", lambda: _redis(url))
        else:
            for check in self._peer("event bus", url):
                # Events are kept, and no task waits for them.
                yield Check(check.name, WARN if check.outcome == FAIL else check.outcome, check.found, check.mend)


def _engine_name(version: Mapping[str, Any]) -> str:
    names = [str(part.get("Name", "")) for part in version.get("Components") or []]
    return "Podman" if any("Podman" in name for name in names) else "Docker"


def _variable(name: str) -> str:
    return {
        "queue": "QUEUE_SERVICE_URL to where the queue is",
        "event bus": "EVENT_BUS_URL, or none to have no events",
    }[name]


def _port(parts: urllib.parse.SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _resolved(host: str, port: int, via: str, mend: str) -> str:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _NotWellError(f"nobody knows {host}{via}: {getattr(error, 'strerror', None) or error}", mend) from None
    return ", ".join(dict.fromkeys(str(entry[4][0]) for entry in found)) + via


def _connected(host: str, port: int, via: str, mend: str) -> str:
    try:
        socket.create_connection((host, port), _CALL_SECONDS / 2).close()
    except OSError as error:
        words = f"no connection to {host}:{port}{via}: {error.strerror or error}"
        raise _NotWellError(words, f"{mend}, and see whether it runs") from None
    return f"{host}:{port} takes connections"


def _redis(url: str) -> str:
    bus = RedisPubSub(url)
    try:
        bus.ping()
    except KeyRefusedError as error:
        raise _NotWellError(str(error), "put the right user and password into EVENT_BUS_URL", WARN) from None
    except (RetryError, RejectedError) as error:
        raise _NotWellError(str(error), "set EVENT_BUS_URL to where Redis is, or to none", WARN) from None
    finally:
        bus.close()
    return "Redis answers"
