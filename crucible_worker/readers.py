"""Readers: from the text of a flag, a variable or a TOML value to a value. ValueError says what was expected."""

import dataclasses
import json
import math
import re
import types
import urllib.parse
from collections.abc import Callable, Mapping

from crucible_worker.model import PYTHON_FILE, Language, refused_name
from crucible_worker.secret import Secret

_LEAST_MEMORY = 6 << 20  # linuxMinMemory of the Docker Engine
_MAX_SECONDS = 365 * 24 * 3600.0  # a lock's timeout overflows somewhere beyond, as would a deadline


def any_text(text: str) -> str:
    """Whatever it is."""
    return text


def secret(text: str) -> Secret:
    """What may be sent as a header of HTTP: printable ASCII on one line, or nothing."""
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


def url(text: str) -> str:
    """The URL of a service, without a slash at its end."""
    expected = "expected http://HOST[:PORT] or https://HOST[:PORT]"
    parts = _parts(text, expected)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(expected)
    if parts.username or parts.password:
        raise ValueError("a URL must not carry a password; use API_KEY")
    return text.rstrip("/")


def docker_host(text: str) -> str:
    """Where a Docker Engine listens."""
    expected = "expected unix:///PATH or tcp://HOST:PORT"
    parts = _parts(text, expected)
    unix = parts.scheme == "unix" and parts.netloc + parts.path
    tcp = parts.scheme == "tcp" and parts.hostname and parts.port
    if not (unix or tcp):
        raise ValueError(expected)
    return text


def event_bus(text: str) -> str:
    """Where events go, `none`, or nothing."""
    if text in {"", "none"} or urllib.parse.urlsplit(text).scheme in {"redis", "rediss"}:
        return text
    try:
        return url(text)
    except ValueError:
        raise ValueError("expected none, http(s)://…, or redis://HOST:PORT/DB") from None


def live_logs(text: str) -> str:
    """Where live output goes, `none`, or nothing."""
    if text in {"", "none", "queue"} or urllib.parse.urlsplit(text).scheme in {"redis", "rediss"}:
        return text
    raise ValueError("expected none, queue, or redis://HOST:PORT/DB")


def address(text: str) -> str:
    """ADDRESS:PORT as it may be listened on, or asked."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise ValueError("expected ADDRESS:PORT, such as 0.0.0.0:8082")
    return f"{host}:{port}"


def size(text: str) -> int:
    """Bytes, above 0."""
    found = re.fullmatch(r"(\d+)\s*([kmg]?)i?b?", text.strip().lower())
    if not found or not int(found[1]):
        raise ValueError("expected a size such as 268435456, 256m or 1g")
    return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[found[2]]


def memory(text: str) -> int:
    """Bytes of memory, at least what Docker gives."""
    found = size(text)
    if found < _LEAST_MEMORY:
        raise ValueError("expected at least 6m, the least that Docker gives")
    return found


def size_or_none(text: str) -> int:
    """Bytes; 0 is none."""
    return 0 if text.strip() == "0" else size(text)


def seconds(text: str) -> float:
    """Seconds, at most a year."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if not found:
        raise ValueError("expected a time such as 30, 1.5, 45s or 10m")
    time = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
    if time > _MAX_SECONDS:
        raise ValueError("expected at most a year")
    return time


def positive_seconds(text: str) -> float:
    """Seconds, above 0."""
    time = seconds(text)
    if not time:
        raise ValueError("expected more than 0 seconds")
    return time


def count(text: str) -> int:
    """A whole number, at least 1."""
    if not text.strip().isdecimal() or not int(text):
        raise ValueError("expected a whole number of at least 1")
    return int(text)


def count_or_none(text: str) -> int:
    """A whole number; 0 is none."""
    if not text.strip().isdecimal():
        raise ValueError("expected a whole number")
    return int(text)


def number(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise ValueError("expected a number above 0")
    return value


def pairs(text: str) -> Mapping[str, str]:
    """NAME=VALUE pairs, at least one."""
    found: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = (part.strip() for part in item.partition("="))
        if not separator or not name or not value:
            raise ValueError("expected NAME=VALUE[,NAME=VALUE…]")
        found[name] = value
    if not found:
        raise ValueError("expected at least one NAME=VALUE")
    return types.MappingProxyType(found)


def patterns(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def languages(text: str) -> Mapping[str, Language]:
    """NAME=IMAGE pairs, or a JSON object whose values are images or objects with the fields of a Language."""
    if not text.lstrip().startswith("{"):
        return types.MappingProxyType({name: Language(image) for name, image in pairs(text).items()})
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


def one_of(*choices: str) -> Callable[[str], str]:
    """A reader of one word out of `choices`."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected {' or '.join(choices)}")
        return text

    return read
