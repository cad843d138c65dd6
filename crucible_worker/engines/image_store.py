"""The images of one Docker Engine: puts ours in, and looks at any. Daemon errors become one line and exit code 69."""

import contextlib
import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Self

from crucible_worker.engines.image import PYTHON_LABEL
from crucible_worker.errors import ExitCode, ExitError

_CALL_SECONDS = 300.0
_CHUNK = 1 << 20
_SET_ID = 0o6000


@dataclass(frozen=True, slots=True)
class Found:
    """An image as its daemon has it. `size` is in bytes; `set_id` lists the files that run as their owner or group."""

    reference: str
    image_id: str
    size: int
    platform: str
    engine_platform: str
    volumes: tuple[str, ...]
    set_id: tuple[str, ...]

    def problems(self) -> list[str]:
        """Why no sandbox may be made of it; empty where it is fit."""
        found = []
        if self.platform != self.engine_platform:
            found.append(f"it is for {self.platform}, and the engine runs {self.engine_platform}")
        if self.volumes:
            found.append(f"it declares volumes ({', '.join(self.volumes)}), which outlive a sandbox")
        return found

    def notes(self) -> list[str]:
        """What is worth knowing, though the sandbox's own settings already take care of it."""
        if not self.set_id:
            return []
        return [
            f"{len(self.set_id)} set-id files, without effect under no-new-privileges: {', '.join(self.set_id[:3])}"
        ]


class ImageStore:
    """A connection to one Docker Engine. A context manager; every method may raise ExitError (69)."""

    def __init__(self, url: str) -> None:
        """`url` is a Docker host such as unix:///var/run/docker.sock."""
        import docker

        self._url = url
        with self._errors():
            self._client = docker.APIClient(base_url=url, version="auto", timeout=_CALL_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def load(self, archive: IO[bytes], reference: str) -> str:
        """Load an archive of `docker save`'s format and return the id that `reference` has then.

        An earlier image of ours under that name is removed if nothing uses it.
        """
        before = self._inspect(reference)
        with self._errors():
            for message in self._client.load_image(archive):
                if "error" in message:
                    raise ExitError(ExitCode.NO_ENGINE, f"the Docker Engine refused the image: {message['error']}.")
        after = self._inspect(reference)
        if after is None:
            raise ExitError(ExitCode.NO_ENGINE, f"the Docker Engine took the image but does not know {reference}.")
        if before is not None and before["Id"] != after["Id"]:
            self._remove_if_ours(before, reference)
        return str(after["Id"])

    def look(self, reference: str) -> Found | None:
        """What there is to know about an image without running it, or None if it is not there."""
        image = self._inspect(reference)
        if image is None:
            return None
        with self._errors():
            version = self._client.version()
        return Found(
            reference=reference,
            image_id=str(image["Id"]),
            size=int(image["Size"]),
            platform=f"{image['Os']}/{image['Architecture']}",
            engine_platform=f"{version['Os']}/{version['Arch']}",
            volumes=tuple(sorted((image.get("Config") or {}).get("Volumes") or ())),
            set_id=tuple(sorted(self._set_id_files(str(image["Id"])))),
        )

    def _inspect(self, reference: str) -> Mapping[str, Any] | None:
        import docker.errors

        with self._errors():
            try:
                return dict(self._client.inspect_image(reference))
            except docker.errors.ImageNotFound:
                return None

    def _remove_if_ours(self, image: Mapping[str, Any], former_name: str) -> None:
        import docker.errors

        labels = (image.get("Config") or {}).get("Labels") or {}
        # A sandbox may still run on it, and another name may point to it: then it stays.
        if PYTHON_LABEL in labels and not set(image.get("RepoTags") or ()) - {former_name}:
            with self._errors(), contextlib.suppress(docker.errors.APIError):
                self._client.remove_image(image["Id"])

    def _set_id_files(self, image_id: str) -> list[str]:
        """Read through the whole file system of a container that is made for it and never started."""
        with self._errors():
            config = {"Image": image_id, "Cmd": ["-"], "HostConfig": {"NetworkMode": "none"}}
            container = self._client.create_container_from_config(config)["Id"]
            try:
                content = io.BufferedReader(_Stream(self._client.export(container)), _CHUNK)
                with tarfile.open(fileobj=content, mode="r|") as files:
                    return [member.name for member in files if member.isfile() and member.mode & _SET_ID]
            finally:
                self._client.remove_container(container, v=True, force=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        import docker.errors
        import requests

        try:
            yield
        except docker.errors.APIError as error:
            message = f"the Docker Engine at {self._url} refused: {error.explanation or error}"
            raise ExitError(ExitCode.NO_ENGINE, _line(message)) from error
        except (docker.errors.DockerException, requests.RequestException, tarfile.TarError, OSError) as error:
            hint = "Start it, add this user to its group, or set DOCKER_HOST"
            message = f"no Docker Engine answers at {self._url}: {_root(error)}. {hint}"
            raise ExitError(ExitCode.NO_ENGINE, _line(message)) from error


class _Stream(io.RawIOBase):
    """Chunks from the daemon as a file."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        super().__init__()
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - a buffer of any type, as IOBase has it
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        length = min(len(buffer), len(self._rest))
        buffer[:length] = self._rest[:length]
        self._rest = self._rest[length:]
        return length


def _root(error: BaseException) -> str:
    """What lies behind an error that the SDK and urllib3 have wrapped several times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".") + "."
