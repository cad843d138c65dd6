"""Which images may be used, and how one that is missing gets onto this host."""

import fnmatch
import threading
from collections import defaultdict
from collections.abc import Sequence

from crucible_worker.engines.daemon import Daemon
from crucible_worker.errors import TaskError
from crucible_worker.model import Reason

# Less than what a task may take beyond its own time. What a registry has sent by then is kept for the next attempt.
PULL_SECONDS = 240.0
_PINNED = "@sha256:"


def refusal(image: str, allowed: Sequence[str]) -> str | None:
    """Why an image must not be used, by the patterns of those that may (fnmatch; none allows all). Pure."""
    if not allowed or any(fnmatch.fnmatchcase(image, pattern) for pattern in allowed):
        return None
    return f"image {image} is not among the allowed ones ({', '.join(allowed)})"


class Images:
    """The images of one daemon, for many threads."""

    def __init__(self, daemon: Daemon, *, pull: bool, allowed: Sequence[str] = ()) -> None:
        """`pull` says whether a missing image is fetched from its registry."""
        self._daemon = daemon
        self._pull = pull
        self._allowed = allowed
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def check(self, image: str) -> None:
        """Raises TaskError (image_refused) for one that must not be used."""
        if words := refusal(image, self._allowed):
            raise TaskError(Reason.IMAGE_REFUSED, words)

    def fetch(self, image: str, missing: TaskError) -> None:
        """Fetch an image that was found `missing`; raises that where images are not fetched.

        However many ask at once, it is fetched once. Raises TaskError (image_missing) with the registry's answer,
        (image_refused) for a pinned image that is not what its digest says, or DaemonGoneError.
        """
        if not self._pull:
            raise missing
        with self._lock:
            lock = self._locks[image]
        with lock:
            if self._daemon.image(image) is None:
                self._daemon.pull(image, PULL_SECONDS)
            self._compare(image)

    def _compare(self, image: str) -> None:
        """The daemon has checked a digest when it fetched; that it really is another image's name is not left to it."""
        found = self._daemon.image(image)
        if found is None:
            raise TaskError(Reason.IMAGE_MISSING, f"image {image} is not there after it was fetched")
        digest = image.partition(_PINNED)[2]
        if digest and not any(str(known).endswith(_PINNED + digest) for known in found.get("RepoDigests") or ()):
            raise TaskError(Reason.IMAGE_REFUSED, f"what the registry sent is not image {image}")
