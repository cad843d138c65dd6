"""Events and live logs on the Redis channels that the platform listens to."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from crucible_worker.errors import ExitCode, ExitError, KeyRefusedError, RejectedError, RetryError
from crucible_worker.model import Event

TIMEOUT_SECONDS = 5.0
# Error codes of a server that will be well again.
_NOT_NOW = ("LOADING", "MASTERDOWN", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "NOREPLICAS", "MISCONF")


class RedisPubSub:
    """Publishes each event's data as JSON on `evaluation:<kind>`. Connects when first used, and again when cut off."""

    def __init__(self, url: str, setting: str = "EVENT_BUS_URL") -> None:
        """`url` is redis://[[USER]:PASSWORD@]HOST[:PORT][/DB], or rediss:// for TLS. Otherwise raises ExitError.

        `setting` is where it came from.
        """
        # Costs 100 ms, and few have Redis.
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        try:
            self._client = redis.Redis.from_url(
                url,
                socket_connect_timeout=TIMEOUT_SECONDS,
                socket_timeout=TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 1),
            )
        except ValueError as error:
            raise ExitError(ExitCode.USAGE, f"{setting} cannot be used: {error}.") from None

    def publish(self, event: Event) -> None:
        """Say it once, to whoever listens now.

        Raises RetryError where Redis cannot be reached or is not ready, KeyRefusedError where it wants another
        password or user, and RejectedError for any other refusal.
        """
        with _faults():
            self._client.publish(f"evaluation:{event.kind}", json.dumps(dict(event.data)))

    def ping(self) -> None:
        """See whether Redis answers. Raises what `publish` raises."""
        with _faults():
            self._client.ping()

    def send(self, eval_id: str, messages: Sequence[Mapping[str, Any]]) -> None:
        """Say what a running task has printed, on `evaluation:<id>:logs`. Raises as `publish`."""
        channel = f"evaluation:{eval_id}:logs".encode("utf-8", "surrogatepass")
        with _faults(), self._client.pipeline(transaction=False) as pipeline:
            for message in messages:
                pipeline.publish(channel, json.dumps(message))
            pipeline.execute()

    def close(self) -> None:
        """Close the connection. A later `publish` opens it again."""
        self._client.close()


@contextmanager
def _faults() -> Iterator[None]:
    """Redis' faults as ours. What it says never holds the URL."""
    from redis import exceptions

    try:
        yield
    except (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError) as error:
        raise KeyRefusedError(f"Redis refused: {error}") from error
    except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
        raise RetryError(f"Redis cannot be reached: {error}") from error
    except exceptions.ResponseError as error:
        if str(error).startswith(_NOT_NOW) or isinstance(error, exceptions.OutOfMemoryError):
            raise RetryError(f"Redis is not ready: {error}") from error
        raise RejectedError(f"Redis refused: {error}") from error
    except exceptions.RedisError as error:
        raise RetryError(f"Redis made no sense: {error}") from error
