"""What the code has left behind, as its supervisor hands it out: bounded, and trusted in nothing. Pure."""

import re
from collections.abc import Iterator

from crucible_worker.model import Artifact, refused_name

MAX_ARTIFACTS = 256
_MAX_NAME = 4096  # PATH_MAX
_HEADER = re.compile(rb"([FLSUQ]) ([0-9]{1,5}) ([0-9]{1,15})\n")
_LOST = "the rest was lost"
_REASONS = {
    b"L": "a symbolic link",
    b"S": "a device, a pipe or a socket",
    b"U": "not readable",
    b"Q": "more than is left of the quota",
}


def dismissal(quota: int) -> bytes:
    """Answers the trailer: how many bytes of artifacts to send, and how many of them; then the sandbox may end."""
    return b"%d %d\n" % (quota, MAX_ARTIFACTS)


class Collector:
    """Takes in what comes after the trailer.

    That is, for each thing in /sandbox/out: F and its content where it is a file, or the letter of a reason; as
    "KIND NAME_BYTES SIZE", a line feed, the name, and the content. Then M where there was more, and a full stop.
    """

    def __init__(self, quota: int) -> None:
        """`quota` is how many bytes of files are taken."""
        self._quota = quota
        self._room = quota + MAX_ARTIFACTS * _MAX_NAME if quota else 0
        self._data = bytearray()
        self.overfull = False

    def feed(self, data: bytes | memoryview) -> None:
        """Take in bytes as they come. What there can be no room for is dropped, and `overfull` says so."""
        self.overfull = self.overfull or len(self._data) + len(data) > self._room
        if not self.overfull:
            self._data += data

    @property
    def complete(self) -> bool:
        """Whether all has come."""
        if not self._quota:
            return True
        return self._data[-1:] == b"." and not any(a.refused == _LOST for a in self._parsed(bytes(self._data)))

    def artifacts(self) -> tuple[Artifact, ...]:
        """All that was left, in the order of its coming. The last one may say that something is missing."""
        return tuple(self._parsed(bytes(self._data)))

    def _parsed(self, data: bytes) -> Iterator[Artifact]:
        at, left = 0, self._quota
        for _ in range(MAX_ARTIFACTS):
            found = _HEADER.match(data, at)
            if found is None:
                break
            kind, length, size = found[1], int(found[2]), int(found[3])
            content = found.end() + length
            at = content + (size if kind == b"F" else 0)
            if at > len(data):
                break
            name = _readable(data[found.end() : content])
            refused = _REASONS.get(kind) or refused_name(name)
            if kind == b"F" and size > left:
                refused = _REASONS[b"Q"]
            left -= 0 if refused else size
            yield Artifact(name, size, b"" if refused else data[content:at], refused)
        if data[at : at + 1] == b"M":
            yield Artifact("", 0, refused=f"there are more than {MAX_ARTIFACTS}")
        elif self._data and data[at:] != b".":
            yield Artifact("", 0, refused=_LOST)


def _readable(name: bytes) -> str:
    """A name that a log and a terminal can bear; names that differ may look alike."""
    text = name.decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "�" for character in text)
