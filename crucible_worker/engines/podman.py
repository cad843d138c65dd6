"""Podman's Docker-compatible socket: the same sandbox, asked for and told of in other words.

It takes no owner for a tmpfs but the container's user, and adds two that are writable and executable to a read-only
root. It never says that no capability is left, which OCI runtime is used, nor, with cgroup version 2, all that it can
limit; its own API does (libpod, 4.0).
"""

from collections.abc import Mapping
from typing import Any

_OWNER, _OWNER_HERE = "uid=65534,gid=65534", "U"
_ADDED = dict.fromkeys(("/run", "/var/tmp"), "rw,nosuid,nodev,noexec,size=4096,mode=0755")  # noqa: S108 - in the sandbox
# What a sandbox has of Podman's own: those two, of one page, an empty file, and a word that says where it is.
MOUNTS, VARIABLES = frozenset({*_ADDED, "/run/.containerenv"}), frozenset({"container"})
_ITS_OWN = ",rprivate,tmpcopyup"
# Where systemd has a container that names no cgroup above it: an ordinary user's, and root's.
_PARENTS = ("user.slice", "machine.slice")
_CONTROLLERS = {"MemoryLimit": "memory", "SwapLimit": "memory", "PidsLimit": "pids", "CpuCfsQuota": "cpu"}


def is_podman(version: Mapping[str, Any]) -> bool:
    """Whether it is Podman that describes itself so (SystemVersion)."""
    return any(part.get("Name") == "Podman Engine" for part in version.get("Components") or ())


def set_up(info: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's set-up (SystemInfo) in Docker's words. `native` is Podman's own account of it.

    With cgroup version 2 it can limit what it was given the controllers for; root gives an ordinary user some of them.
    """
    if str(info.get("CgroupVersion")) != "2":
        return dict(info)
    given = (native.get("host") or {}).get("cgroupControllers") or ()
    return {**info, **{limit: controller in given for limit, controller in _CONTROLLERS.items()}}


def asked(config: Mapping[str, Any]) -> dict[str, Any]:
    """A container's configuration (ContainerCreate) in Podman's words."""
    host = config.get("HostConfig") or {}
    tmpfs = {path: text.replace(_OWNER, _OWNER_HERE) for path, text in (host.get("Tmpfs") or {}).items()}
    added = _ADDED if host.get("ReadonlyRootfs") else {}
    return {**config, "HostConfig": {**host, "Tmpfs": added | tmpfs}}


def told(inspected: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """A container (ContainerInspect) in Docker's words. `native` is the same one in Podman's own."""
    host = dict(inspected.get("HostConfig") or {})
    host["Runtime"] = native.get("OCIRuntime")
    if not (native.get("EffectiveCaps") or native.get("BoundingCaps")):
        host["CapDrop"] = ["ALL"]
    for key in ("PidMode", "UTSMode"):
        host[key] = "" if host.get(key) == "private" else host.get(key)
    if host.get("CgroupParent") in _PARENTS:
        host["CgroupParent"] = ""
    limits = host.get("Ulimits") or []
    host["Ulimits"] = [{**limit, "Name": limit["Name"].removeprefix("RLIMIT_").lower()} for limit in limits]
    tmpfs = {path: _options(text) for path, text in (host.get("Tmpfs") or {}).items()}
    # One that is not as asked stays, for the comparison to find.
    host["Tmpfs"] = {
        path: tmpfs.get(path) for path in {**tmpfs, **_ADDED} if path not in _ADDED or tmpfs.get(path) != _ADDED[path]
    }
    return {**inspected, "HostConfig": host}


def _options(text: str) -> str:
    words = text.removesuffix(_ITS_OWN).split(",")
    return ",".join(_OWNER if word == _OWNER_HERE else word for word in words)
