"""Every setting, declared once: its names, default, reading and help. Flag > environment > TOML file > default."""

import dataclasses
import json
import math
import re
import types
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_worker.errors import ExitCode, ExitError
from crucible_worker.model import PYTHON_FILE, Language, Limits, refused_name


class Secret:
    """A value that never shows itself: `str` and `repr` are masked, `reveal` is not."""

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself, for the one place that sends it."""
        return self._value

    def __repr__(self) -> str:
        return "****" if self._value else ""

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reveal() == self._value

    def __hash__(self) -> int:
        return hash(self._value)


def without_password(text: str) -> str:
    """A text with the user and password of any URL in it masked."""
    return re.sub(r"//[^/\s]*@", "//****@", text)


# Readers: from the text of a flag, a variable or a TOML value to a value; ValueError says what was expected.


_LEAST_MEMORY = 6 << 20  # linuxMinMemory of the Docker Engine
_MAX_SECONDS = 365 * 24 * 3600.0  # a lock's timeout overflows somewhere beyond, as would a deadline


def _text(text: str) -> str:
    return text


def _secret(text: str) -> Secret:
    if not text.isascii() or not (text.isprintable() or not text):
        raise ValueError("expected printable ASCII on one line")
    return Secret(text)


def _parts(text: str, expected: str) -> urllib.parse.SplitResult:
    """The parts of a URL that can be one: with a port that is none, or blanks, it would fail at every connection."""
    try:
        parts = urllib.parse.urlsplit(text)
        usable = parts.port != 0 and text.isprintable() and " " not in text
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(expected)
    return parts


def _url(text: str) -> str:
    expected = "expected http://HOST[:PORT] or https://HOST[:PORT]"
    parts = _parts(text, expected)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(expected)
    if parts.username or parts.password:
        raise ValueError("a URL must not carry a password; use API_KEY")
    return text.rstrip("/")


def _docker_host(text: str) -> str:
    expected = "expected unix:///PATH or tcp://HOST:PORT"
    parts = _parts(text, expected)
    unix = parts.scheme == "unix" and parts.netloc + parts.path
    tcp = parts.scheme == "tcp" and parts.hostname and parts.port
    if not (unix or tcp):
        raise ValueError(expected)
    return text


def _event_bus(text: str) -> str:
    if text in {"", "none"} or urllib.parse.urlsplit(text).scheme in {"redis", "rediss"}:
        return text
    try:
        return _url(text)
    except ValueError:
        raise ValueError("expected none, http(s)://…, or redis://HOST:PORT/DB") from None


def _live_logs(text: str) -> str:
    if text in {"", "none", "queue"} or urllib.parse.urlsplit(text).scheme in {"redis", "rediss"}:
        return text
    raise ValueError("expected none, queue, or redis://HOST:PORT/DB")


def address(text: str) -> str:
    """ADDRESS:PORT as it may be listened on, or asked. Raises ValueError."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise ValueError("expected ADDRESS:PORT, such as 0.0.0.0:8082")
    return f"{host}:{port}"


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([kmg]?)i?b?", text.strip().lower())
    if not found or not int(found[1]):
        raise ValueError("expected a size such as 268435456, 256m or 1g")
    return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[found[2]]


def _memory(text: str) -> int:
    size = _bytes(text)
    if size < _LEAST_MEMORY:
        raise ValueError("expected at least 6m, the least that Docker gives")
    return size


def _bytes_or_none(text: str) -> int:
    return 0 if text.strip() == "0" else _bytes(text)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if not found:
        raise ValueError("expected a time such as 30, 1.5, 45s or 10m")
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
    if seconds > _MAX_SECONDS:
        raise ValueError("expected at most a year")
    return seconds


def _positive_seconds(text: str) -> float:
    seconds = _seconds(text)
    if not seconds:
        raise ValueError("expected more than 0 seconds")
    return seconds


def _count(text: str) -> int:
    if not text.strip().isdecimal() or not int(text):
        raise ValueError("expected a whole number of at least 1")
    return int(text)


def _count_or_none(text: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError("expected a whole number")
    return int(text)


def number(text: str) -> float:
    """A number above 0. Raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise ValueError("expected a number above 0")
    return value


def _pairs(text: str) -> Mapping[str, str]:
    pairs: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = (part.strip() for part in item.partition("="))
        if not separator or not name or not value:
            raise ValueError("expected NAME=VALUE[,NAME=VALUE…]")
        pairs[name] = value
    if not pairs:
        raise ValueError("expected at least one NAME=VALUE")
    return types.MappingProxyType(pairs)


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _languages(text: str) -> Mapping[str, Language]:
    """NAME=IMAGE pairs, or a JSON object whose values are images or objects with the fields of a Language."""
    if not text.lstrip().startswith("{"):
        return types.MappingProxyType({name: Language(image) for name, image in _pairs(text).items()})
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("expected NAME=IMAGE[,NAME=IMAGE…] or a JSON object") from None
    if not found or not all(found):
        raise ValueError("expected at least one language, with a name")
    return types.MappingProxyType({name: _language(name, value) for name, value in found.items()})


def _language(name: str, value: object) -> Language:
    fields = {"image": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or not isinstance(fields.get("image"), str) or not fields["image"]:
        raise ValueError(f"language {name!r} needs an image")
    unknown = set(fields) - {f.name for f in dataclasses.fields(Language)}
    command, file, may_exec = fields.get("command", []), fields.get("file", ""), fields.get("exec", False)
    preload = fields.get("preload", [])
    if unknown or not isinstance(may_exec, bool):
        raise ValueError(f"language {name!r} takes image, command, file, preload, and exec = true")
    if not isinstance(preload, list) or not all(_is_module(word) for word in preload) or (preload and command):
        raise ValueError(f'preload of language {name!r} must be a list of Python modules, such as ["numpy"]')
    if not isinstance(command, list) or not all(isinstance(word, str) and word.isprintable() for word in command):
        raise ValueError(f'the command of language {name!r} must be a list of strings, such as ["node", "main.js"]')
    if not isinstance(file, str) or bool(command) != bool(file) or (file and refused_name(file)):
        raise ValueError(f"language {name!r} needs both a command and the name of the file for its code, or neither")
    return Language(fields["image"], tuple(command), file or PYTHON_FILE, may_exec, tuple(preload))


def _is_module(word: object) -> bool:
    return isinstance(word, str) and all(part.isidentifier() for part in word.split("."))


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected {' or '.join(choices)}")
        return text

    return read


def _setting(
    default: str, read: Callable[[str], Any], help_text: str, env: str | None = None, *, secret: bool = False
) -> Any:  # noqa: ANN401 - the type of the field it stands for
    return dataclasses.field(
        default_factory=lambda: read(default),
        repr=read not in {_event_bus, _live_logs},  # their URLs may carry a password
        metadata={"default": default, "read": read, "help": help_text, "env": env, "secret": secret},
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of the worker and its commands. Sizes in bytes, times in seconds."""

    queue_url: str = _setting("http://queue:8081", _url, "the Queue Service", "QUEUE_SERVICE_URL")
    api_url: str = _setting("http://api:8080", _url, "the API service; takes events at /events", "API_SERVICE_URL")
    api_key: Secret = _setting(
        "", _secret, "sent as X-API-Key with every call; better in a file", "API_KEY", secret=True
    )
    worker_id: str = _setting("worker-1", _text, "this worker's name in logs, results and labels", "HOSTNAME")
    event_bus_url: str = _setting(
        "",
        _event_bus,
        "where events go: http(s)://…, redis://…, none; empty means API_SERVICE_URL/events",
        "EVENT_BUS_URL",
    )
    live_logs: str = _setting(
        "",
        _live_logs,
        "where output goes while a task runs: redis://…, queue (one that offers it), none; empty is none",
    )
    docker_host: str = _setting(
        "unix:///var/run/docker.sock", _docker_host, "the Docker Engine (or Podman's compatible socket)", "DOCKER_HOST"
    )
    engines: Mapping[str, str] = _setting(
        "docker=runc,gvisor=runsc", _pairs, "engines by name, each with the OCI runtime the daemon knows it by"
    )
    engine_fallback: str = _setting(
        "docker", _one_of("docker", "never"), "what runs a task whose engine is unavailable; never fails it instead"
    )
    engine_probe_interval: float = _setting("60", _positive_seconds, "how often engines are probed again")
    languages: Mapping[str, Language] = _setting(
        "python=crucible-sandbox:python",
        _languages,
        "the sandbox image of each language; tables (or JSON) with image, command and file for others than python",
    )
    pull: str = _setting(
        "never", _one_of("never", "missing"), "whether an image that is not on this host is fetched from its registry"
    )
    images_allowed: tuple[str, ...] = _setting(
        "", _patterns, "the images that may be used, as patterns such as registry.local/*; empty allows all"
    )
    loopback: str = _setting(
        "daemon",
        _one_of("daemon", "runtime"),
        "who makes a sandbox's loopback; runtime starts sooner (Docker before 26: in half the time) but knows "
        "127.0.0.1 only, not the name localhost",
    )
    memory: int = _setting("256m", _memory, "memory of a sandbox; swap is never added")
    cpus: float = _setting("1", number, "CPUs of a sandbox")
    processes: int = _setting("64", _count, "processes and threads in a sandbox")
    open_files: int = _setting("256", _count, "open files of a process")
    file_size: int = _setting("64m", _bytes, "the largest file a process may write")
    tmp_size: int = _setting("64m", _bytes, "size of /sandbox and of /tmp, each; counts as memory")
    output: int = _setting("1m", _bytes, "what is kept of each output stream, half head, half tail")
    output_limit: int = _setting("32m", _bytes, "output past which a sandbox is killed")
    artifacts: int = _setting("1m", _bytes_or_none, "what is taken along of /sandbox/out, in all; 0 takes nothing")
    timeout_max: float = _setting("600", _positive_seconds, "a task that asks for more time gets this")
    concurrency: int = _setting("1", _count, "tasks at once")
    warm: int = _setting("1", _count_or_none, "sandboxes kept ready for each slot, engine and language; 0 is none")
    poll_wait: float = _setting("25", _seconds, "how long a poll may wait at a queue that offers it; 0 never asks")
    poll_interval: float = _setting("1", _positive_seconds, "pause after an empty poll, jittered")
    poll_backoff: float = _setting("5", _positive_seconds, "pause added after each failed poll")
    poll_backoff_max: float = _setting("30", _positive_seconds, "longest pause after failed polls")
    state_dir: str = _setting(
        "/var/lib/crucible-worker", _text, "where claims and results wait until accepted; memory keeps nothing"
    )
    journal_size: int = _setting("1g", _bytes, "bytes in the journal past which nothing more is claimed")
    journal_entries: int = _setting("10000", _count, "results, waiting or refused, past which nothing more is claimed")
    journal_age: float = _setting(
        "168h", _positive_seconds, "how long a result may wait before nothing more is claimed"
    )
    disk_reserve: int = _setting("64m", _bytes, "bytes free on the disk of state_dir below which nothing is claimed")
    cancel_poll: float = _setting(
        "0", _seconds, "how often a queue without leases is asked for a running task; 404 twice ends it; 0 never asks"
    )
    drain_timeout: float = _setting("0", _seconds, "how long a shutdown waits for tasks and results; 0 is for ever")
    health_address: str = _setting("0.0.0.0:8082", address, "where /health is served")
    health_cert: str = _setting("", _text, "certificate for TLS on the health address, PEM; empty serves plain HTTP")
    health_key: str = _setting("", _text, "key of that certificate, PEM; may stand in the same file")
    health_token: Secret = _setting(
        "", _secret, "asked for by /, /status and /metrics: as Bearer, or as the password of any user", secret=True
    )
    log_format: str = _setting("auto", _one_of("auto", "json", "console"), "auto is console on a terminal, else json")
    log_level: str = _setting("info", _one_of("debug", "info", "warning", "error"), "the least level that is logged")
    ca_file: str = _setting("", _text, "certificates to trust instead of the system's, PEM")
    client_cert: str = _setting("", _text, "client certificate for mutual TLS, PEM")
    client_key: str = _setting("", _text, "key of the client certificate, PEM")

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
