"""Makes a sandbox image from a Python of this host: offline, without a registry, the same bytes every time."""

import hashlib
import io
import json
import re
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from crucible_worker import __version__
from crucible_worker.engines import rootfs, worker_image
from crucible_worker.errors import ExitCode, ExitError

PYTHON_LABEL = "crucible.python"
VERSION_LABEL = "crucible.version"
_CREATED = "1970-01-01T00:00:00Z"  # the time of the build would make every build another image
_SANDBOX = {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"]}
_BLOCK = tarfile.BLOCKSIZE
# The distribution specification's grammar of names, with the tag's.
_REFERENCE = re.compile(r"[a-z0-9]+(?:[._/:-]+[a-z0-9]+)*?(?::[A-Za-z0-9_][\w.-]{0,127})?")


@dataclass(frozen=True, slots=True)
class Built:
    """An image in its archive. `size` is that of the file in bytes; `image_id` is a digest."""

    reference: str
    image_id: str
    python: str
    architecture: str
    size: int


def reference(tag: str) -> str:
    """An image's full name, with `:latest` where it has no tag. Raises ExitError (64) if it is none."""
    if not _REFERENCE.fullmatch(tag):
        raise ExitError(
            ExitCode.USAGE, f"bad image name {tag!r}: expected NAME[:TAG], such as crucible-sandbox:python."
        )
    return tag if ":" in tag.rpartition("/")[2] else f"{tag}:latest"


def default_python() -> str:
    """The Python that runs us, or the one its virtual environment was made from."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def write(out: IO[bytes], tag: str, executable: str, worker: Path | None = None) -> Built:
    """Write an image of the Python at `executable` to the empty, seekable `out`, as `docker load` reads it.

    It is one for sandboxes, or, with its .pyz, one of the `worker`. The same Python gives the same bytes.
    Raises ExitError (64) on a bad name or Python, (1) if a file cannot be read.
    """
    name = reference(tag)
    try:
        with tempfile.TemporaryDirectory(prefix="crucible-image-") as folder:
            compiled, unpacked = Path(folder, "compiled"), Path(folder, "worker")
            compiled.mkdir()
            python = rootfs.inspect_python(executable, compiled)
            tree = rootfs.entries(python, compiled)
            if worker is not None:
                tree |= worker_image.entries(worker, executable, unpacked)
            digest = _write_layer(out, rootfs.with_folders(tree))
            architecture = python.architecture
    except (OSError, ValueError) as error:
        raise ExitError(ExitCode.FAILED, f"cannot make an image from {executable}: {error}.") from error
    config = _json(_config(python, architecture, digest, _SANDBOX if worker is None else worker_image.CONFIG))
    image_id = hashlib.sha256(config).hexdigest()
    manifest = [{"Config": f"{image_id}.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    _add(out, f"{image_id}.json", config)
    _add(out, "manifest.json", _json(manifest))
    out.write(bytes(2 * _BLOCK))
    size = out.tell()
    out.seek(0)
    return Built(name, f"sha256:{image_id}", python.version, architecture, size)


class _Hashing(io.RawIOBase):
    """Passes on what is written, and keeps its length and digest."""

    def __init__(self, out: IO[bytes]) -> None:
        super().__init__()
        self._out = out
        self.length = 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401 - a buffer of any type, as IOBase has it
        self.length += len(data)
        self.digest.update(data)
        return self._out.write(data)


def _write_layer(out: IO[bytes], tree: Mapping[str, rootfs.Entry]) -> str:
    """Write the image's one layer and return its digest. Its header comes last, when its length is known."""
    start = out.tell()
    out.write(bytes(_BLOCK))
    hashing = _Hashing(out)
    with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.GNU_FORMAT) as layer:
        for path in sorted(tree):
            _add_entry(layer, path, tree[path])
    out.write(bytes(-hashing.length % _BLOCK))
    end = out.tell()
    out.seek(start)
    out.write(_header("layer.tar", hashing.length))
    out.seek(end)
    return f"sha256:{hashing.digest.hexdigest()}"


def _add_entry(layer: tarfile.TarFile, path: str, entry: rootfs.Entry) -> None:
    info = tarfile.TarInfo(path)
    info.mode, info.uid, info.gid = entry.mode, entry.owner, entry.owner
    if entry.link is not None:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
        layer.addfile(info)
    elif entry.source is None:
        info.type = tarfile.DIRTYPE
        layer.addfile(info)
    else:
        data = entry.read()
        info.size = len(data)
        layer.addfile(info, io.BytesIO(data))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def _add(out: IO[bytes], name: str, data: bytes) -> None:
    out.write(_header(name, len(data)) + data + bytes(-len(data) % _BLOCK))


def _config(
    python: rootfs.HostPython, architecture: str, layer: str, config: Mapping[str, Any]
) -> Mapping[str, object]:
    """The image's configuration (OCI image specification 1.1, config.md)."""
    return {
        "architecture": architecture,
        "os": "linux",
        "created": _CREATED,
        "config": {
            **config,
            "Labels": {**config.get("Labels", {}), PYTHON_LABEL: python.version, VERSION_LABEL: __version__},
        },
        "rootfs": {"type": "layers", "diff_ids": [layer]},
        "history": [{"created": _CREATED, "created_by": "crucible-worker image build"}],
    }


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def write_file(path: Path, tag: str, executable: str, worker: Path | None = None) -> Built:
    """Write the archive to `path`, which has either its old content or the whole of the new."""
    if path.exists() and not path.is_file():  # a device would be replaced
        raise ExitError(ExitCode.FAILED, f"cannot write {path}: it is not a file.")
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w+b") as out:
            built = write(out, tag, executable, worker)
        part.replace(path)
    except OSError as error:
        raise ExitError(ExitCode.FAILED, f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        part.unlink(missing_ok=True)
    return built
