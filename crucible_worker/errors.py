"""What can go wrong, split by what the caller does next: stop the process, give up one task, or try again."""

from crucible_worker.model import Reason


class ExitError(Exception):
    """Stop the process: print the message as one line and exit with `code` (see `ExitCode`)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ExitCode:
    """Exit codes of every command, after BSD's sysexits.h where one fits."""

    OK = 0
    FAILED = 1
    USAGE = 64
    NO_ENGINE = 69
    STALLED = 70
    UNDELIVERED = 75
    KEY_REFUSED = 77
    INTERRUPTED = 130


class TaskError(Exception):
    """Give up one task: no verdict on its code can be reached. `reason` says why (see `Reason`)."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RetryError(Exception):
    """Try again later: the peer cannot be reached, or its answer makes no sense.

    `retry_after` is the delay the peer asked for in seconds, or None.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class JournalError(Exception):
    """The journal on disk cannot be read or written now; nothing of the failed step was kept."""


class KeyRefusedError(Exception):
    """The peer answered 401 or 403: keep what is to be said, read the key again, and try later."""


class RejectedError(Exception):
    """The peer will never accept this: keep it among the dead letters, with the peer's answer."""


class AlreadySettledError(Exception):
    """The queue does not know this task any more: somebody settled it, or it is gone."""
