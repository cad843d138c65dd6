"""Every setting, declared once: its names, default, reading and help. Flag > environment > TOML file > default."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_worker import readers
from crucible_worker.errors import ExitCode, ExitError
from crucible_worker.model import Language, Limits
from crucible_worker.secret import Secret, without_password


def _setting(
    default: str, read: Callable[[str], Any], help_text: str, env: str | None = None, *, secret: bool = False
) -> Any:  # noqa: ANN401 - the type of the field it stands for
    return dataclasses.field(
        default_factory=lambda: read(default),
        repr=read not in {readers.event_bus, readers.live_logs},  # their URLs may carry a password
        metadata={"default": default, "read": read, "help": help_text, "env": env, "secret": secret},
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of the worker and its commands. Sizes in bytes, times in seconds."""

    queue_url: str = _setting("http://queue:8081", readers.url, "the Queue Service", "QUEUE_SERVICE_URL")
    api_url: str = _setting(
        "http://api:8080", readers.url, "the API service; takes events at /events", "API_SERVICE_URL"
    )
    api_key: Secret = _setting(
        "", readers.secret, "sent as X-API-Key with every call; better in a file", "API_KEY", secret=True
    )
    worker_id: str = _setting(
        "worker-1", readers.any_text, "this worker's name in logs, results and labels", "HOSTNAME"
    )
    event_bus_url: str = _setting(
        "",
        readers.event_bus,
        "where events go: http(s)://…, redis://…, none; empty means API_SERVICE_URL/events",
        "EVENT_BUS_URL",
    )
    live_logs: str = _setting(
        "",
        readers.live_logs,
        "where output goes while a task runs: redis://…, queue (one that offers it), none; empty is none",
    )
    docker_host: str = _setting(
        "unix:///var/run/docker.sock",
        readers.docker_host,
        "the Docker Engine (or Podman's compatible socket)",
        "DOCKER_HOST",
    )
    engines: Mapping[str, str] = _setting(
        "docker=runc,gvisor=runsc", readers.pairs, "engines by name, each with the OCI runtime the daemon knows it by"
    )
    engine_fallback: str = _setting(
        "docker",
        readers.one_of("docker", "never"),
        "what runs a task whose engine is unavailable; never fails it instead",
    )
    engine_probe_interval: float = _setting("60", readers.positive_seconds, "how often engines are probed again")
    languages: Mapping[str, Language] = _setting(
        "python=crucible-sandbox:python",
        readers.languages,
        "the sandbox image of each language; tables (or JSON) with image, command and file for others than python",
    )
    pull: str = _setting(
        "never",
        readers.one_of("never", "missing"),
        "whether an image that is not on this host is fetched from its registry",
    )
    images_allowed: tuple[str, ...] = _setting(
        "", readers.patterns, "the images that may be used, as patterns such as registry.local/*; empty allows all"
    )
    loopback: str = _setting(
        "daemon",
        readers.one_of("daemon", "runtime"),
        "who makes a sandbox's loopback; runtime starts sooner (Docker before 26: in half the time) but knows "
        "127.0.0.1 only, not the name localhost",
    )
    memory: int = _setting("256m", readers.memory, "memory of a sandbox; swap is never added")
    cpus: float = _setting("1", readers.number, "CPUs of a sandbox")
    processes: int = _setting("64", readers.count, "processes and threads in a sandbox")
    open_files: int = _setting("256", readers.count, "open files of a process")
    file_size: int = _setting("64m", readers.size, "the largest file a process may write")
    tmp_size: int = _setting("64m", readers.size, "size of /sandbox and of /tmp, each; counts as memory")
    output: int = _setting("1m", readers.size, "what is kept of each output stream, half head, half tail")
    output_limit: int = _setting("32m", readers.size, "output past which a sandbox is killed")
    artifacts: int = _setting(
        "1m", readers.size_or_none, "what is taken along of /sandbox/out, in all; 0 takes nothing"
    )
    timeout_max: float = _setting("600", readers.positive_seconds, "a task that asks for more time gets this")
    concurrency: int = _setting("1", readers.count, "tasks at once")
    warm: int = _setting(
        "1", readers.count_or_none, "sandboxes kept ready for each slot, engine and language; 0 is none"
    )
    poll_wait: float = _setting(
        "25", readers.seconds, "how long a poll may wait at a queue that offers it; 0 never asks"
    )
    poll_interval: float = _setting("1", readers.positive_seconds, "pause after an empty poll, jittered")
    poll_backoff: float = _setting("5", readers.positive_seconds, "pause added after each failed poll")
    poll_backoff_max: float = _setting("30", readers.positive_seconds, "longest pause after failed polls")
    state_dir: str = _setting(
        "/var/lib/crucible-worker",
        readers.any_text,
        "where claims and results wait until accepted; memory keeps nothing",
    )
    journal_size: int = _setting("1g", readers.size, "bytes in the journal past which nothing more is claimed")
    journal_entries: int = _setting(
        "10000", readers.count, "results, waiting or refused, past which nothing more is claimed"
    )
    journal_age: float = _setting(
        "168h", readers.positive_seconds, "how long a result may wait before nothing more is claimed"
    )
    disk_reserve: int = _setting(
        "64m", readers.size, "bytes free on the disk of state_dir below which nothing is claimed"
    )
    cancel_poll: float = _setting(
        "0",
        readers.seconds,
        "how often a queue without leases is asked for a running task; 404 twice ends it; 0 never asks",
    )
    drain_timeout: float = _setting(
        "0", readers.seconds, "how long a shutdown waits for tasks and results; 0 is for ever"
    )
    health_address: str = _setting("0.0.0.0:8082", readers.address, "where /health is served")
    health_cert: str = _setting(
        "", readers.any_text, "certificate for TLS on the health address, PEM; empty serves plain HTTP"
    )
    health_key: str = _setting("", readers.any_text, "key of that certificate, PEM; may stand in the same file")
    health_token: Secret = _setting(
        "",
        readers.secret,
        "asked for by /, /status and /metrics: as Bearer, or as the password of any user",
        secret=True,
    )
    log_format: str = _setting(
        "auto", readers.one_of("auto", "json", "console"), "auto is console on a terminal, else json"
    )
    log_level: str = _setting(
        "info", readers.one_of("debug", "info", "warning", "error"), "the least level that is logged"
    )
    ca_file: str = _setting("", readers.any_text, "certificates to trust instead of the system's, PEM")
    client_cert: str = _setting("", readers.any_text, "client certificate for mutual TLS, PEM")
    client_key: str = _setting("", readers.any_text, "key of the client certificate, PEM")

    def limits(self) -> Limits:
        """The limits of a sandbox, before a task's own timeout."""
        return Limits(
            timeout_seconds=self.timeout_max,
            memory_bytes=self.memory,
            cpus=self.cpus,
            processes=self.processes,
            open_files=self.open_files,
            file_bytes=self.file_size,
            tmp_bytes=self.tmp_size,
            output_bytes=self.output,
            output_limit_bytes=self.output_limit,
            artifact_bytes=self.artifacts,
        )


@dataclass(frozen=True, slots=True)
class Description:
    """One setting as documentation shows it."""

    name: str
    env: str
    flag: str
    default: str
    help: str
    secret: bool


def describe() -> list[Description]:
    """Every setting, in order of declaration."""
    return [
        Description(
            name=f.name,
            env=f.metadata["env"] or f"CRUCIBLE_{f.name.upper()}",
            flag=f"--{f.name.replace('_', '-')}" + ("-file" if f.metadata["secret"] else ""),
            default=f.metadata["default"],
            help=f.metadata["help"],
            secret=f.metadata["secret"],
        )
        for f in dataclasses.fields(Settings)
    ]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each name the place its value came from."""

    settings: Settings
    sources: Mapping[str, str]
    secret_files: Mapping[str, str]

    @property
    def api_key_file(self) -> str | None:
        """The file that the key came from, if it was one."""
        return self.secret_files.get("api_key")

    def rows(self) -> list[tuple[str, str, str]]:
        """(name, value with secrets masked, source) for each setting."""
        rows = []
        for name, source in self.sources.items():
            value = getattr(self.settings, name)
            shown = _shown(value)
            rows.append((name, without_password(shown), source))
        return rows


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={_shown(item)}" for key, item in value.items())
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, Language):
        return value.image + (f" ({' '.join(value.command)})" if value.command else "")
    return str(value)


def load(flags: Mapping[str, str], environ: Mapping[str, str], toml: Mapping[str, object]) -> Loaded:
    """Read every setting from its strongest source.

    `flags` and `toml` are keyed by setting name; `<secret>_file` stands for a secret in a file.
    Raises ExitError (64) with one line about the first unknown key or bad value.
    """
    descriptions = {d.name: d for d in describe()}
    _refuse_unknown(descriptions, environ, toml)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    secret_files: dict[str, str] = {}
    for f in dataclasses.fields(Settings):
        text, source, file = _find(descriptions[f.name], flags, environ, toml)
        try:
            values[f.name] = f.metadata["read"](text)
        except ValueError as error:
            shown = "" if f.metadata["secret"] else f" ({without_password(text)[:200]!r})"
            raise ExitError(ExitCode.USAGE, f"bad value{shown} for {source}: {error}.") from None
        sources[f.name] = source
        if file is not None:
            secret_files[f.name] = file
    return Loaded(Settings(**values), sources, secret_files)


def _find(
    d: Description, flags: Mapping[str, str], environ: Mapping[str, str], toml: Mapping[str, object]
) -> tuple[str, str, str | None]:
    """(text, source, file the text was read from) of one setting."""
    file_key = f"{d.name}_file"
    places: list[tuple[Mapping[str, Any], str, str]] = [
        (flags, d.name, d.flag),
        (environ, d.env, d.env),
        (toml, d.name, f"{d.name} in the configuration file"),
    ]
    file_places: list[tuple[Mapping[str, Any], str, str]] = [
        (flags, file_key, d.flag),
        (environ, f"{d.env}_FILE", f"{d.env}_FILE"),
        (toml, file_key, f"{file_key} in the configuration file"),
    ]
    for (table, key, source), (files, path_key, path_source) in zip(places, file_places, strict=True):
        if d.secret and files.get(path_key, "") != "":
            path = _as_text(files[path_key], path_source)
            return read_secret(path, path_source), path_source, path
        # An empty variable is what a container platform leaves for an unset one.
        if table.get(key) is not None and (table is not environ or table[key]):
            return _as_text(table[key], source), source, None
    return d.default, "default", None


def read_secret(path: str, source: str) -> str:
    """The secret in a file, without surrounding white space. Raises ExitError (64) if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or NUL in the path
        raise ExitError(ExitCode.USAGE, f"{source} cannot be read: {error}.") from None


def _as_text(value: object, source: str) -> str:
    """A TOML value in the notation of the environment."""
    if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()):
        return json.dumps(value, default=str)
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ExitError(ExitCode.USAGE, f"bad value for {source}: expected a string, a number or a table.")
    return str(value)


# Kubernetes adds such variables for every Service in the namespace; one named "crucible" must not stop the worker.
_SERVICE_LINK = re.compile(r"_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_\w+)?)$")


def _refuse_unknown(known: Mapping[str, Description], environ: Mapping[str, str], toml: Mapping[str, object]) -> None:
    variables = {d.env for d in known.values()} | {"CRUCIBLE_CONFIG"}
    variables |= {f"{d.env}_FILE" for d in known.values() if d.secret}
    for name in environ:
        if name.startswith("CRUCIBLE_") and name not in variables and not _SERVICE_LINK.search(name):
            raise ExitError(ExitCode.USAGE, f"unknown setting {name!r} in the environment{_hint(name, variables)}")
    keys = set(known) | {f"{d.name}_file" for d in known.values() if d.secret}
    for key in toml:
        if key not in keys:
            raise ExitError(ExitCode.USAGE, f"unknown setting {key!r} in the configuration file{_hint(key, keys)}")


def _hint(name: str, known: set[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
