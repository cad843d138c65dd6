"""Passes a stream on as it comes, but for what may turn out to be the supervisor's last word."""

from collections.abc import Callable

_SECRET = 16
_LAST_WORD = _SECRET + 2


class Tee:
    """One stream. `say` gets its bytes in order, each once, as soon as they are known to be the code's own."""

    def __init__(self, say: Callable[[bytes], None]) -> None:
        self._say = say
        self._held = b""

    def feed(self, data: bytes | memoryview, secret: bytes) -> None:
        """More bytes. Those are held back that may begin the last word, which begins with `secret`."""
        text = self._held + bytes(data)
        first = max(len(text) - _LAST_WORD, 0)
        cut = next((i for i in range(first, len(text)) if secret.startswith(text[i : i + _SECRET])), len(text))
        self._held = text[cut:]
        if cut:
            self._say(text[:cut])

    def finish(self, secret: bytes) -> None:
        """The stream has ended: what is held back is the last word, or the code's own."""
        held, self._held = self._held, b""
        if held and not held.startswith(secret):
            self._say(held)
