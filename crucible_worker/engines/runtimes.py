"""OCI runtimes by the names that daemons know them by: whose kernel runs the code, and whether a daemon will do.

A name that says nothing counts as one that shares the host's kernel, as runc, crun and youki do: the stricter case.
"""

from collections.abc import Mapping
from typing import Any

_GVISOR = ("runsc", "gvisor")
_KERNELS = (*_GVISOR, "kata", "firecracker", "krun")
# What SystemInfo calls them; limits that they do not cover are ignored without a word.
_CONTROLS = {
    "MemoryLimit": "memory",
    "SwapLimit": "swap",
    "PidsLimit": "processes",
    "CpuCfsQuota": "CPU time",
}
_MAKE_LOOPBACK = ("runc", "crun")
_OWN_PROFILES = ("default", "builtin")


def is_gvisor(runtime: str) -> bool:
    """Whether gVisor's kernel runs the code: it ends, and counts its threads, in its own way."""
    return any(word in runtime for word in _GVISOR)


def shares_kernel(runtime: str) -> bool:
    """Whether the host's own kernel runs the code."""
    return not any(word in runtime for word in _KERNELS)


def is_podman(info: Mapping[str, Any]) -> bool:
    """Whether it is Podman whose set-up (SystemInfo) this is."""
    return "BuildahVersion" in info


def unfit(info: Mapping[str, Any], runtime: str) -> str | None:
    """Why a daemon of this set-up (SystemInfo) cannot run sandboxes on an OCI runtime; None where it may. Pure.

    What a container's own configuration cannot state, and what daemons have been seen to ignore silently.
    """
    options = info.get("SecurityOptions") or ()
    rootless = info.get("Rootless") or any("name=rootless" in str(option) for option in options)
    if rootless and str(info.get("CgroupVersion")) == "1":
        # Podman claims that it can, and leaves the limits out.
        return (
            "a rootless engine cannot limit anything on a host with cgroup version 1; use version 2, or one of root's"
        )
    missing = [name for key, name in _CONTROLS.items() if info.get(key) is False]
    if missing:
        return f"the daemon cannot limit {', '.join(missing)} on this host; its cgroups lack the controllers"
    if runtime not in (info.get("Runtimes") or {}) and "." not in runtime:
        return f"the daemon has no runtime {runtime}"
    if is_podman(info) and runtime != (default := info.get("DefaultRuntime")):
        return f"Podman's socket runs everything on {default}, its default, and nothing on {runtime}"
    if shares_kernel(runtime) and (profile := _seccomp(info)) not in _OWN_PROFILES:
        return f"the daemon's seccomp profile is {profile or 'missing'}, and not its own default"
    return None


def _seccomp(info: Mapping[str, Any]) -> str | None:
    """The profile of containers that ask for none; None where there is no seccomp."""
    for option in info.get("SecurityOptions") or ():
        fields = dict(pair.partition("=")[::2] for pair in str(option).split(","))
        if fields.get("name") == "seccomp":
            return fields.get("profile", "default")
    return None


def makes_loopback(info: Mapping[str, Any], runtime: str) -> bool:
    """Whether a runtime brings up a loopback interface in an empty network namespace, by its daemon's account.

    gVisor takes over the interfaces that are up, and there is none, unless it has a network of its own (gVisor,
    runsc/sandbox/network.go).
    """
    about = (info.get("Runtimes") or {}).get(runtime) or {}
    return runtime in _MAKE_LOOPBACK or "--network=none" in (about.get("runtimeArgs") or ())
