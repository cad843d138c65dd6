"""Who is spoken to: the queue and the event bus. Nothing is claimed, settled or published."""

import datetime as dt
import email.utils
from urllib.parse import urlsplit

from crucible_worker.doctor.checks import Finding, failed, passed, skipped, warned
from crucible_worker.doctor.host import MAX_SKEW_SECONDS, NEED_CLOCK
from crucible_worker.doctor.network import Peer, hung_up_mend, tls_mend
from crucible_worker.errors import ExitError, KeyRefusedError, RejectedError, RetryError
from crucible_worker.secret import without_password
from crucible_worker.transport import HttpTransport, Response

ANSWER_SECONDS = 10.0


class QueueChecks:
    """Asks a Queue Service for its health and its counts; both change nothing."""

    def __init__(self, peer: Peer, transport: HttpTransport, key_source: str, *, has_key: bool) -> None:
        """`key_source` names where the key was taken from."""
        self._peer = peer
        self._transport = transport
        self._key_source = key_source
        self._has_key = has_key
        self._date = ""

    def answer(self) -> Finding:
        """It answers as a queue does. A refused key is an answer too."""
        try:
            response = self._get("/health")
            if response.status == 404:
                response = self._get("/status")
            self._date = response.headers.get("date", "")
            response.check().json()
        except KeyRefusedError:
            return passed("it answers, and asks for a key")
        except RejectedError as error:
            return failed(f"it {error}", f"set QUEUE_SERVICE_URL to the Queue Service itself, not {self._peer.url}")
        except RetryError as error:
            return failed(f"it {error}", self._answer_mend(error))
        return passed(f"it answered {response.status}")

    def _answer_mend(self, error: RetryError) -> str:
        words = str(error)
        if error.__cause__ is not None:
            if not self._peer.url.startswith("https:"):
                return f"read its log; does it speak TLS? Then set QUEUE_SERVICE_URL to https://{self._peer.host}…"
            return hung_up_mend(error.__cause__) or tls_mend(error.__cause__, self._peer)
        if words.startswith("answered 5"):
            return "read the queue's log: it is in trouble itself"
        return "set QUEUE_SERVICE_URL to the Queue Service itself: a proxy or a web page answered"

    def key(self) -> Finding:
        """It takes the key. Counts are asked for, never a task."""
        mend = f"put the queue's key into the file that API_KEY_FILE names (now from: {self._key_source})"
        try:
            response = self._get("/status")
            if response.status == 404:
                return warned(
                    "it has no /status to try the key with", "watch for result_key_refused in the worker's log"
                )
            response.check()
        except KeyRefusedError as error:
            return failed(f"it {error}", mend if self._has_key else f"{mend}; there is none")
        return passed("it takes the key" if self._has_key else "it asks for none")

    def clock(self) -> Finding:
        """The queue's clock and ours agree, as far as an HTTP date tells."""
        try:
            theirs = email.utils.parsedate_to_datetime(self._date)
        except ValueError:
            return skipped("it sends no date")
        skew = abs((dt.datetime.now(dt.UTC) - theirs.astimezone(dt.UTC)).total_seconds())
        words = f"{skew:.0f} s apart"
        return passed(words) if skew <= MAX_SKEW_SECONDS else warned(words, f"here or there, {NEED_CLOCK}")

    def _get(self, path: str) -> Response:
        return self._transport.request("GET", f"{self._peer.url}{path}", deadline=ANSWER_SECONDS)


def bus(url: str, transport: HttpTransport, *, implied: bool) -> Finding:
    """Whoever is told of evaluations can be reached. `implied` by another setting, its absence only warns."""
    if url == "none":
        return skipped("EVENT_BUS_URL is none")
    shown = without_password(url)
    verdict = warned if implied else failed
    mend = f"set EVENT_BUS_URL to where events go, or to none{', which is now derived from API_SERVICE_URL' * implied}"
    try:
        words = _ping(url) if urlsplit(url).scheme in {"redis", "rediss"} else _look(url, transport)
    except KeyRefusedError as error:
        return verdict(f"{shown}: {error}", "correct the user and password in EVENT_BUS_URL")
    except (RetryError, RejectedError, ExitError) as error:
        return verdict(f"{shown} {error}", mend)
    return passed(f"{shown} {words}")


def _ping(url: str) -> str:
    from crucible_worker.events.redis_pubsub import RedisPubSub

    client = RedisPubSub(url)
    try:
        client.ping()
    finally:
        client.close()
    return "answers"


def _look(url: str, transport: HttpTransport) -> str:
    """Any answer shows that somebody is there: what it says to a real event, only that event will tell."""
    response = transport.request("GET", url, deadline=ANSWER_SECONDS)
    if response.status >= 500:
        response.check()
    return f"answers ({response.status} to a GET; events are POSTs)"
