"""Values that must not be shown: a secret that masks itself, a URL without its password."""

import re


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
