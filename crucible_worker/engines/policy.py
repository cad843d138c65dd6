"""The sandbox's isolation as one pure function: limits in, the Docker Engine's container configuration out.

Field names are those of the Docker Engine API 1.41 (ContainerCreate), the oldest that is supported. Nothing here can be
loosened by a task or a setting: callers choose sizes, an image and a runtime, and no more.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from crucible_worker.engines.runtimes import shares_kernel
from crucible_worker.model import Limits

USER = "65534:65534"  # nobody, in every distribution
# gVisor counts its own threads against the pids limit: with 64, a fork bomb kills the sandbox instead of failing in it.
RUNTIME_THREADS = 256
SHM_BYTES = 16 << 20
# The supervisor stays below the code's own 1000, so that running out of memory hits the code.
SUPERVISOR_OOM_SCORE = 500
MIN_NANO_CPUS = 10_000_000  # the kernel's least quota is 1 ms in 100 ms; what rounds to less would be no quota at all

_CGROUP = re.compile(r"/crucible-[0-9a-f]+_[0-9a-f]+|crucible-[0-9a-f]+_[0-9a-f]+\.slice")


def container_config(
    *,
    image: str,
    runtime: str,
    limits: Limits,
    labels: Mapping[str, str],
    boot: str,
    shell: bool = False,
    may_exec: bool = False,
    cgroup_parent: str = "",
    preload: Sequence[str] = (),
    own_loopback: bool = False,
) -> dict[str, Any]:
    """The body of POST /containers/create for a sandbox.

    `boot` is the source of the program in it, for the image's Python, or with `shell` for its POSIX shell. `may_exec`
    lets what is written to /sandbox be executed, which languages that compile need. `preload` are modules that it
    imports before it takes its code. `cgroup_parent` is a cgroup of ours to put it in, or empty for the daemon's own
    place. With `own_loopback` the daemon adds nothing to the sandbox's own, empty network namespace. Raises ValueError
    for any other cgroup, and for a limit of zero or less, which a daemon would take for "no limit".
    """
    if cgroup_parent and not _CGROUP.fullmatch(cgroup_parent):
        raise ValueError(f"{cgroup_parent!r} is no cgroup of ours")
    for name in ("memory_bytes", "cpus", "processes", "open_files", "file_bytes", "tmp_bytes"):
        if not getattr(limits, name) > 0:
            raise ValueError(f"{name} must be more than 0, not {getattr(limits, name)}")
    return {
        "Image": image,
        "Entrypoint": ["/bin/sh" if shell else "python3", "-c", boot],
        "Cmd": list(preload),
        "User": USER,
        "WorkingDir": "/sandbox",
        "Hostname": "sandbox",
        "Domainname": "",
        "NetworkDisabled": own_loopback,
        "Env": ["HOME=/sandbox", "TMPDIR=/tmp", "LANG=C.UTF-8"],
        "Labels": dict(labels),
        "Healthcheck": {"Test": ["NONE"]},
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "OpenStdin": True,
        "StdinOnce": True,
        "Tty": False,
        "StopSignal": "SIGKILL",
        "HostConfig": _host_config(runtime, limits, cgroup_parent, may_exec=may_exec),
    }


def _host_config(runtime: str, limits: Limits, cgroup_parent: str, *, may_exec: bool) -> dict[str, Any]:
    own_threads = 1 if shares_kernel(runtime) else RUNTIME_THREADS
    tmpfs = f"size={limits.tmp_bytes},uid=65534,gid=65534"
    home = "rw,nosuid,nodev," + ("exec" if may_exec else "noexec")
    return {
        "Runtime": runtime,
        "Privileged": False,
        "Init": False,
        "CapDrop": ["ALL"],
        "CapAdd": [],
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": True,
        "Tmpfs": {
            "/sandbox": f"{home},{tmpfs},mode=0755",
            "/tmp": f"rw,nosuid,nodev,noexec,{tmpfs},mode=1777",  # noqa: S108 - in the sandbox
        },
        "NetworkMode": "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "UsernsMode": "",
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes,
        "OomKillDisable": False,
        "OomScoreAdj": SUPERVISOR_OOM_SCORE,
        "NanoCpus": max(round(limits.cpus * 1_000_000_000), MIN_NANO_CPUS),
        "PidsLimit": limits.processes + own_threads,
        "ShmSize": SHM_BYTES,
        "Ulimits": [
            {"Name": "nofile", "Soft": limits.open_files, "Hard": limits.open_files},
            {"Name": "fsize", "Soft": limits.file_bytes, "Hard": limits.file_bytes},
            {"Name": "core", "Soft": 0, "Hard": 0},
            # A daemon's default for these would let the code pass others by, whatever its quota of CPU time.
            {"Name": "rtprio", "Soft": 0, "Hard": 0},
            {"Name": "nice", "Soft": 0, "Hard": 0},
        ],
        "LogConfig": {"Type": "none", "Config": {}},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,
        "Binds": [],
        "Mounts": [],
        "VolumesFrom": [],
        "Devices": [],
        "DeviceRequests": [],
        "DeviceCgroupRules": [],
        "GroupAdd": [],
        "Links": [],
        "ExtraHosts": [],
        "PortBindings": {},
        "PublishAllPorts": False,
        "Sysctls": {},
        "CgroupParent": cgroup_parent,
    }


def shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a sandbox is, without what tells it from others: two of one shape serve a task equally well."""
    host = {key: value for key, value in config["HostConfig"].items() if key != "CgroupParent"}
    return {key: value for key, value in config.items() if key not in {"Labels", "NetworkDisabled"}} | {
        "HostConfig": host
    }


def violations(requested: Mapping[str, Any], effective: Mapping[str, Any]) -> list[str]:
    """How the container that the daemon made (ContainerInspect) differs from the one that was asked for.

    Daemon defaults, authorisation plugins and old engines drop or change fields silently. Empty means it is as asked.
    """
    wanted, made = requested["HostConfig"], effective.get("HostConfig") or {}
    found = [
        f"{key} is {made.get(key)!r} instead of {value!r}"
        for key, value in wanted.items()
        if not _same(key, value, made.get(key))
    ]
    config = effective.get("Config") or {}
    found += [
        f"{key} is {config.get(key)!r} instead of {requested[key]!r}"
        for key in ("User", "Entrypoint", "Cmd", "Tty")
        if (config.get(key) or None) != (requested[key] or None)
    ]
    found += [f"{key} is emptied" for key in ("MaskedPaths", "ReadonlyPaths") if made.get(key) == []]
    found += [f"a volume is mounted at {mount.get('Destination')}" for mount in effective.get("Mounts") or ()]
    return found


def _same(key: str, wanted: Any, made: Any) -> bool:  # noqa: ANN401 - JSON values
    if key == "RestartPolicy":
        return bool((made or {}).get("Name") in {"", "no", None})
    if key == "LogConfig":
        return bool((made or {}).get("Type") == wanted["Type"])
    if key == "Ulimits":
        # The daemon may add its own default limits to ours, but none of the same name.
        ours = {limit["Name"] for limit in wanted}
        theirs = [limit for limit in made or [] if limit.get("Name") in ours]
        return len(theirs) == len(wanted) and all(limit in theirs for limit in wanted)
    return bool(wanted == made or not (wanted or made))
