"""Turns any value into plain JSON values that are bounded and show no secret, and text into what a reader can see."""

import base64
import json
import math
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

MASKED = "****"
MAX_TEXT = 1024  # characters kept of one value
MAX_ITEMS = 32  # kept of one list or mapping
MAX_DEPTH = 4


class Mask:
    """Replaces secrets in a text, in whatever form they travel. Asks for the secrets each time; forgets none."""

    def __init__(self, secrets: Callable[[], Iterable[str]]) -> None:
        self._secrets = secrets
        self._known: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None

    def __call__(self, text: str) -> str:
        """The text with every secret replaced."""
        current = frozenset(filter(None, self._secrets()))
        if not current <= self._known:
            known = self._known | current
            forms = {form for secret in known for form in forms_of(secret)}
            # The pattern before the set: another thread that sees the set must not find the old pattern.
            self._pattern = re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True))))
            self._known = known
        return self._pattern.sub(MASKED, text) if self._pattern else text


def forms_of(secret: str) -> set[str]:
    """A secret as itself, percent-encoded, escaped by JSON or repr, and in base64 at any offset."""
    raw = secret.encode("utf-8", "surrogatepass")
    percent = {urllib.parse.quote(raw, safe=""), urllib.parse.quote(raw), urllib.parse.quote_plus(raw)}
    percent |= {re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), form) for form in percent}
    escaped = {
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        repr(raw)[2:-1],
    }
    return {secret} | percent | escaped | _base64_forms(raw)


def _base64_forms(raw: bytes) -> set[str]:
    """What base64 shows of a secret alone, and inside something longer: there its edges mix with its neighbours."""
    whole = base64.b64encode(raw).decode().rstrip("=")
    found = {whole} if len(whole) >= 4 else set()
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + raw).decode().rstrip("=")
        first = (offset * 8 + 5) // 6
        last = (offset + len(raw)) * 8 // 6
        if last - first >= 8:  # less would mask innocent words
            found.add(encoded[first:last])
    return found | {form.replace("+", "-").replace("/", "_") for form in found}


def plain(value: object, mask: Mask, depth: int = 0) -> object:
    """A value as JSON values: masked, shortened with a note of the length, and never raising."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and _is_ordinary(value):
        return value if mask(repr(value)) == repr(value) else MASKED
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        return _mapping(value, mask, depth + 1)
    if depth < MAX_DEPTH and isinstance(value, list | tuple | set | frozenset):
        items = [plain(item, mask, depth + 1) for item in islice(value, MAX_ITEMS)]
        return items if len(value) <= MAX_ITEMS else [*items, f"… ({len(value)} items)"]
    return shorten(mask(_text(value)))


def _mapping(value: Mapping[object, object], mask: Mask, depth: int) -> dict[str, object]:
    items = islice(value.items(), MAX_ITEMS)
    shown = {shorten(mask(_text(key))): plain(item, mask, depth) for key, item in items}
    return shown if len(value) <= MAX_ITEMS else shown | {"…": f"({len(value)} items)"}


def _is_ordinary(value: float) -> bool:
    """Whether JSON can hold it, and a reader will believe it."""
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


def _text(value: object) -> str:
    try:
        if isinstance(value, BaseException):
            return f"{type(value).__name__}: {' '.join(str(value).split())}"
        if isinstance(value, bytes | bytearray):
            return value.decode("utf-8", "backslashreplace")
        return str(value)
    except Exception as error:  # noqa: BLE001 - somebody else's __str__, or an int of 5000 digits
        return f"({type(value).__name__} without a text: {type(error).__name__})"


def shorten(text: str) -> str:
    """At most MAX_TEXT characters of a text, and how many there were."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text)} characters)"


# C0 and C1 controls, line and paragraph separators, marks that reorder text, and surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """A text whose invisible and reordering characters are written out, so that they cannot forge what is read."""
    return _UNSAFE.sub(lambda found: _escape(found[0]), text)


def _escape(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) > 0xFF else f"\\x{ord(character):02x}"
