"""The one door to the Docker Engine: each call bounded in time, each failure one of ours."""

import contextlib
import datetime as dt
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from crucible_worker.engines import podman
from crucible_worker.engines.counters import Counters, of_stats
from crucible_worker.errors import RetryError, TaskError
from crucible_worker.model import Reason

CALL_SECONDS = 60.0
STATS_SECONDS = 0.3  # numbers that are good to have must not delay every verdict


class DaemonGoneError(RetryError):
    """The daemon cannot be reached, or did not answer in time."""


class Attachment:
    """A sandbox's standard streams over one socket. Close it when done."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401 - docker-py returns a private type
        self._stream = stream
        self.socket: socket.socket = getattr(stream, "_sock", stream)

    def close(self) -> None:
        """End the connection. The container goes on."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        # The SDK keeps the HTTP response beside the socket; without this its pool holds the descriptor.
        response = getattr(self._stream, "_response", None)
        if response is not None:
            response.close()
        self._stream.close()


class Daemon:
    """Calls to one Docker Engine. May be shared by threads: each has its own connection, made when first needed."""

    def __init__(self, url: str, call_seconds: float = CALL_SECONDS) -> None:
        """`url` is a Docker host such as unix:///var/run/docker.sock; a call ends after `call_seconds`."""
        self.url = url
        self._call_seconds = call_seconds
        self._local = threading.local()
        self._slow_to_count = False
        self._podman: bool | None = None  # until the first call

    def version(self) -> Mapping[str, Any]:
        """The daemon's own description (SystemVersion)."""
        with self._errors("ask for the version"):
            return dict(self._client().version(api_version=False))

    def info(self) -> Mapping[str, Any]:
        """The daemon's set-up (SystemInfo)."""
        with self._errors("ask for its set-up"):
            client = self._client()
            found = dict(client.info())
            return podman.set_up(found, self._native(client, "info")) if self._podman else found

    def create(self, name: str, config: Mapping[str, Any]) -> str:
        """Create a container and return its id. Raises TaskError (image_missing) where its image is not there."""
        with self._errors("create a sandbox", image=str(config["Image"])):
            client = self._client()
            body = podman.asked(config) if self._podman else dict(config)
            return str(client.create_container_from_config(body, name)["Id"])

    def attach(self, container: str) -> Attachment:
        """Connect to a container's streams; before `start`, or its first output is lost."""
        params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        with self._errors("attach to a sandbox"):
            return Attachment(self._client().attach_socket(container, params))

    def start(self, container: str) -> None:
        """Start a container. Returns when its first process runs."""
        with self._errors("start a sandbox"):
            self._client().start(container)

    def wait(self, container: str, seconds: float) -> int | None:
        """The exit code of a container, or None if it has not ended within `seconds`."""
        import requests

        with self._errors("wait for a sandbox"):
            try:
                return int(self._client().wait(container, timeout=max(seconds, 0.05))["StatusCode"])
            except requests.exceptions.ReadTimeout:
                return None
            except requests.exceptions.ConnectionError as error:
                # urllib3 reports a read timeout while waiting for the headers in this way (docker-py#1966).
                if "Read timed out" in str(error):
                    return None
                raise

    def inspect(self, container: str) -> Mapping[str, Any] | None:
        """A container as the daemon sees it (ContainerInspect), or None if there is none."""
        import docker.errors

        with self._errors("inspect a sandbox"):
            try:
                client = self._client()
                found = dict(client.inspect_container(container))
                if not self._podman:
                    return found
                return podman.told(found, self._native(client, f"containers/{container}/json"))
            except docker.errors.NotFound:
                return None

    def counters(self, container: str) -> Counters:
        """What a running container has used so far, as far as the daemon knows; it knows nothing of one that ended.

        Engines up to 28 or so take a second for each answer. Such a one is not asked again.
        """
        if self._slow_to_count:
            return Counters()
        import docker.errors
        import requests

        began = time.monotonic()
        try:
            client = self._client()
            # The SDK's own stats() asks for two readings, a second apart.
            url = client._url("/containers/{0}/stats", container)  # noqa: SLF001
            answer = client.get(url, params={"stream": "false", "one-shot": "true"}, timeout=5)
            return of_stats(client._result(answer, json=True))  # noqa: SLF001
        except (docker.errors.DockerException, requests.exceptions.RequestException, OSError, ValueError):
            return Counters()
        finally:
            self._slow_to_count = time.monotonic() - began > STATS_SECONDS

    def kill(self, container: str) -> None:
        """Kill a container's processes. One that has ended, or is gone, is as it should be."""
        if self._podman:
            # Podman kills what is paused in vain, and takes it for ended from then on; Docker lets it go on first.
            self._allowing({404, 409, 500}, "unpause a sandbox", lambda client: client.unpause(container))
        self._allowing({404, 409}, "kill a sandbox", lambda client: client.kill(container))

    def what_befell(self, container: str, state: Mapping[str, Any]) -> frozenset[str]:
        """Which of `kill` (through the daemon, by anybody) and `oom` befell a container that has ended.

        `state` is its State (ContainerInspect), whose OOMKilled is false where the daemon learnt of the end first.
        Takes half a second: the daemon writes the events down after the deed.
        """
        with self._errors("ask what happened to a sandbox"):
            events = self._client().events(
                since=f"{dt.datetime.fromisoformat(state['StartedAt']).timestamp():.3f}",
                until=f"{time.time() + 0.5:.3f}",
                filters={"container": container, "event": ["kill", "oom"]},
                decode=True,
            )
            return frozenset(str(event["Action"]) for event in events)

    def remove(self, container: str) -> None:
        """Remove a container with all that it has. One that is gone, or just going, is as it should be."""
        self._allowing(
            {404, 409}, "remove a sandbox", lambda client: client.remove_container(container, v=True, force=True)
        )

    def containers(self, labels: Mapping[str, str]) -> list[Mapping[str, Any]]:
        """All containers that carry these labels, running or not (ContainerList)."""
        wanted = [f"{key}={value}" for key, value in labels.items()]
        with self._errors("list sandboxes"):
            return list(self._client().containers(all=True, filters={"label": wanted}))

    def image(self, name: str) -> Mapping[str, Any] | None:
        """An image as the daemon sees it (ImageInspect), or None if there is none."""
        import docker.errors

        with self._errors("inspect an image"):
            try:
                return dict(self._client().inspect_image(name))
            except docker.errors.ImageNotFound:
                return None

    def pull(self, name: str, seconds: float) -> None:
        """Have an image fetched from its registry (ImageCreate), within `seconds` in all.

        Raises TaskError (image_missing) with what the registry or the daemon says.
        """
        import docker.errors
        import docker.utils

        deadline = time.monotonic() + seconds
        repository, tag = docker.utils.parse_repository_tag(name)
        with self._errors("pull an image"):
            try:
                for said in self._client().pull(repository, tag or "latest", stream=True, decode=True):
                    if "error" in said:
                        raise TaskError(Reason.IMAGE_MISSING, f"image {name} cannot be pulled: {said['error']}")
                    if time.monotonic() > deadline:
                        words = f"image {name} was not pulled within {seconds:.0f} seconds; load it beforehand"
                        raise TaskError(Reason.IMAGE_MISSING, words)
            except docker.errors.APIError as error:
                words = f"image {name} cannot be pulled: {_explained(error)}"
                raise TaskError(Reason.IMAGE_MISSING, words) from error
            finally:
                # A stream that was left in the middle must not serve another call.
                self.close()

    def remove_image(self, name: str) -> None:
        """Take a name off an image, and the image away if that was its last. One that is gone, or in use, stays so."""
        self._allowing({404, 409}, "remove an image", lambda client: client.remove_image(name))

    def close(self) -> None:
        """Close this thread's connection. The next call makes a new one."""
        client = getattr(self._local, "client", None)
        self._local.client = None
        if client is not None:
            client.close()

    def _client(self) -> Any:  # noqa: ANN401 - docker-py has no types
        client = getattr(self._local, "client", None)
        if client is None:
            import docker

            client = docker.APIClient(base_url=self.url, version="auto", timeout=self._call_seconds)
            if self._podman is None:
                self._podman = podman.is_podman(client.version(api_version=False))
            self._local.client = client
        return client

    def _native(self, client: Any, path: str) -> Mapping[str, Any]:  # noqa: ANN401 - docker-py has no types
        """What Podman's own API says (libpod, 4.0)."""
        url = client._url(f"/v4.0.0/libpod/{path}", versioned_api=False)  # noqa: SLF001
        return dict(client._result(client._get(url), json=True))  # noqa: SLF001

    def _allowing(self, statuses: set[int], what: str, call: Callable[[Any], None]) -> None:
        import docker.errors

        with self._errors(what):
            try:
                call(self._client())
            except docker.errors.APIError as error:
                if error.status_code not in statuses:
                    raise

    @contextlib.contextmanager
    def _errors(self, what: str, image: str = "") -> Iterator[None]:
        import docker.errors
        import requests

        try:
            yield
        except docker.errors.ImageNotFound as error:
            hint = f"image {image} is not on this host; make it with 'image build' or load it"
            raise TaskError(Reason.IMAGE_MISSING, hint) from error
        except docker.errors.APIError as error:
            raise TaskError(Reason.ENGINE_UNAVAILABLE, f"the daemon would not {what}: {_explained(error)}") from error
        except (requests.exceptions.RequestException, docker.errors.DockerException, OSError) as error:
            self.close()
            raise DaemonGoneError(
                f"the Docker Engine at {self.url} does not answer ({what}): {_root(error)}"
            ) from error


def _explained(error: Any) -> str:  # noqa: ANN401 - docker-py has no types
    return str(error.explanation or error).strip().replace("\n", " ")[:400]


def _root(error: BaseException) -> str:
    """The innermost sentence: the SDK and urllib3 wrap a plain 'No such file or directory' five times."""
    seen: BaseException = error
    while (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    return str(seen)[:200] or type(seen).__name__
