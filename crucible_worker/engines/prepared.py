"""A sandbox that is up and waits for its code: made, verified, attached, started. And how one goes."""

import select
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from crucible_worker.engines import policy, processes
from crucible_worker.engines.cgroups import Cgroup, Cgroups
from crucible_worker.engines.daemon import Attachment, Daemon, DaemonGoneError
from crucible_worker.errors import TaskError
from crucible_worker.model import Reason

_BRIEF_SECONDS = 10.0
_STREAM_HEADER = 8  # Docker API, ContainerAttach


@dataclass(frozen=True, slots=True)
class Prepared:
    """One sandbox, for one task. `shape` is its configuration as `policy.shape` has it; `born` a monotonic time."""

    container: str
    image_id: str
    shape: Mapping[str, Any]
    streams: Attachment
    group: Cgroup
    born: float
    _belongings: ExitStack

    def is_up(self, within: float = 0.0) -> bool:
        """Whether its program waits for a frame, now or `within` seconds.

        That takes no call to the daemon: the program's first byte stays in the socket until the code is sent.
        """
        sock, poll = self.streams.socket, select.poll()
        poll.register(sock, select.POLLIN | select.POLLRDHUP)
        seen = dict(poll.poll(within * 1000))
        if seen.get(sock.fileno(), 0) != select.POLLIN:
            return False
        try:
            return len(sock.recv(_STREAM_HEADER + 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)) > _STREAM_HEADER
        except OSError:
            return False

    def close(self) -> None:
        """Give back what this process holds for it, once it is gone."""
        self._belongings.close()


class Maker:
    """Makes sandboxes, and takes away those that nobody has used."""

    def __init__(
        self, daemon: Daemon, cgroups: Cgroups | None, live: set[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`live` gets the names of the sandboxes that are looked after: another one with our labels is a leftover."""
        self._daemon = daemon
        self._cgroups = cgroups
        self._live = live
        self._clock = clock

    def make(
        self, configure: Callable[[str], Mapping[str, Any]], lap: Callable[[str], None] = lambda _: None
    ) -> Prepared:
        """A sandbox, configured for the cgroup parent that `configure` is given. `lap` hears of each phase's end.

        Raises TaskError (engine_unavailable, image_missing, image_refused); nothing is left of it then, unless the
        daemon itself is away.
        """
        with ExitStack() as stack:
            name = f"crucible-{uuid.uuid4().hex}"
            self._live.add(name)
            stack.callback(self._live.discard, name)
            try:
                group = stack.enter_context(self._cgroups.one()) if self._cgroups else Cgroup()
            except DaemonGoneError as error:
                raise TaskError(Reason.ENGINE_UNAVAILABLE, str(error)) from error
            config = configure(group.parent)
            container = self._create(name, config)
            try:
                image_id = self._verify(container, config)
                lap("create")
                streams = self._started(container)
            except BaseException:
                destroy_quietly(self._daemon, container)
                processes.kill_shim(container)
                raise
            lap("start")
            stack.callback(streams.close)
            shape = policy.shape(config)
            return Prepared(container, image_id, shape, streams, group, self._clock(), stack.pop_all())

    def discard(self, prepared: Prepared) -> None:
        """End a sandbox whatever it does. What cannot be removed now is a leftover."""
        prepared.streams.close()
        destroy_quietly(self._daemon, prepared.container)
        prepared.close()

    def _create(self, name: str, config: Mapping[str, Any]) -> str:
        try:
            return self._daemon.create(name, config)
        except DaemonGoneError as error:
            # The daemon may have made it all the same; the name finds it.
            destroy_quietly(self._daemon, name)
            raise TaskError(Reason.ENGINE_UNAVAILABLE, str(error)) from error

    def _started(self, container: str) -> Attachment:
        streams = self._daemon.attach(container)
        try:
            self._daemon.start(container)
        except BaseException:
            streams.close()
            raise
        return streams

    def _verify(self, container: str, config: Mapping[str, Any]) -> str:
        """The image id of a created container whose isolation is what was asked for."""
        effective = self._daemon.inspect(container)
        if effective is None:
            raise TaskError(Reason.ENGINE_UNAVAILABLE, "the sandbox vanished after it was made")
        if effective.get("Mounts"):
            where = ", ".join(str(mount.get("Destination")) for mount in effective["Mounts"])
            raise TaskError(Reason.IMAGE_REFUSED, f"image {config['Image']} declares volumes ({where})")
        if found := policy.violations(config, effective):
            raise TaskError(Reason.ENGINE_UNAVAILABLE, f"the daemon weakened the sandbox: {'; '.join(found)}")
        return str(effective["Image"])


def destroy(daemon: Daemon, container: str) -> None:
    """Remove a sandbox and see that it is gone. Raises TaskError (engine_error) if it is not."""
    daemon.remove(container)
    if daemon.inspect(container) is not None:
        raise TaskError(Reason.ENGINE_ERROR, f"sandbox {container[:12]} is still there after its removal")


def destroy_quietly(daemon: Daemon, container: str) -> None:
    """Remove a sandbox on the way out of a failure, which must not be hidden by another.

    A daemon that has just been silent gets little time: what stays is a leftover, and removed later.
    """
    brief = Daemon(daemon.url, _BRIEF_SECONDS)
    try:
        brief.remove(container)
    except (TaskError, DaemonGoneError):
        return
    finally:
        brief.close()
    # A runtime that failed has been seen to leave a process that the daemon does not know.
    processes.kill(container)
