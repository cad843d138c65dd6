"""What a sandbox has said so far, in a file of its own: it outlives the process that read it, not the machine."""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

_CHUNK = 1 << 20


class Transcripts:
    """The transcripts of running tasks, one for each claim. With no directory, nothing is kept."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def keep_only(self, claims: Collection[int]) -> None:
        """Remove those of claims that are not open any more."""
        if self._directory is None:
            return
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            for path in self._directory.iterdir():
                if path.name not in {str(claim) for claim in claims}:
                    path.unlink(missing_ok=True)

    def of(self, claim: int) -> "Transcript":
        """The transcript of one claim, empty until something is written."""
        return Transcript(None if self._directory is None else self._directory / str(claim))


class Transcript:
    """Bytes in the order in which they were heard. Not forced to disk: a sandbox does not outlive its host either.

    A disk that is full costs the transcript, never the task.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def restart(self) -> None:
        """Forget what was heard: another sandbox runs the task."""
        self.discard()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._file = self._path.open("wb", buffering=0)

    def resume(self) -> None:
        """Go on behind what was heard before."""
        self._close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._file = self._path.open("ab", buffering=0)

    def add(self, data: bytes) -> None:
        """Bytes were heard."""
        if self._file is None:
            return
        try:
            complete = self._file.write(data) == len(data)
        except OSError:
            complete = False
        if not complete:  # one with a hole would be read as the whole
            self.discard()

    def heard(self) -> Iterator[bytes]:
        """All that was heard. Nothing where there is no transcript."""
        if self._path is None:
            return
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def discard(self) -> None:
        """Remove it."""
        self._close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
