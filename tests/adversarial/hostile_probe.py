"""Tries every way out that it knows, and prints what became of each as one JSON object.

It is a program for a sandbox, harmless where an attempt succeeds. Its stdin is a JSON object: `port` and `abstract`
are where the host listens, `secret` is what only the worker may know.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import shutil
import signal
import socket
import stat
import sys
import time

given = json.loads(sys.stdin.read())
libc = ctypes.CDLL(None, use_errno=True)
ARM = platform.machine() == "aarch64"
# asm/unistd_64.h and asm-generic/unistd.h
NUMBERS = {
    "add_key": (248, 217), "bpf": (321, 280), "clone": (56, 220), "finit_module": (313, 273), "init_module": (175, 105),
    "io_uring_setup": (425, 425), "kexec_load": (246, 104), "keyctl": (250, 219), "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241), "pivot_root": (155, 41), "reboot": (169, 142), "userfaultfd": (323, 282),
    "fsopen": (430, 430), "mount_setattr": (442, 442), "process_vm_readv": (310, 270), "swapon": (167, 224),
}  # fmt: skip
PTRACE_ATTACH, SPAWNED = 16, 200
NEW_USER, NEW_MOUNT, NEW_NET = 0x10000000, 0x00020000, 0x40000000


def checked(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result


def call(name, *arguments):
    return checked(libc.syscall(NUMBERS[name][ARM], *arguments))


def opened(path, flags):
    os.close(os.open(path, flags))


def connected(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as s:
        s.settimeout(1)
        s.connect(address)
        s.send(b"out")


def bound(family, kind, protocol=0):
    socket.socket(family, kind, protocol).close()


def executed(directory):
    program = shutil.copy(os.path.realpath(sys.executable), directory + "/program")
    os.chmod(program, 0o755)
    os.execve(program, [program, "-c", ""], {"PYTHONHOME": sys.prefix})


def filled(path, size):
    with open(path, "wb", buffering=0) as file:
        for _ in range(size >> 20):
            if file.write(bytes(1 << 20)) < 1 << 20:
                raise OSError(errno.ENOSPC, "")


def spawned():
    """Asks for more processes than there may be, then lets go of them."""
    read, write = os.pipe()
    for _ in range(SPAWNED):
        if os.fork() == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)


def entered(namespace):
    fd = os.open("/proc/1/ns/" + namespace, os.O_RDONLY)
    checked(libc.setns(fd, 0))


def born_into(namespaces):
    """A child by clone(2), which the kernel gives to whoever may unshare; it has nothing to do."""
    pid = call("clone", namespaces | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def mounted():
    checked(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))


def seen_in_proc(name):
    found = b""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                found += file.read()
        except OSError:
            pass
    return given["secret"].encode() in found


ATTEMPTS = {
    "mount": mounted,
    "mount new api": lambda: call("fsopen", b"tmpfs", 0),
    "remount": lambda: checked(libc.mount(None, b"/", None, 32, None)),
    "unmount": lambda: checked(libc.umount2(b"/proc", 2)),
    "mount attributes": lambda: call("mount_setattr", -100, b"/", 0, bytes(32), 32),
    "new user namespace": lambda: checked(libc.unshare(NEW_USER)),
    "new mount namespace": lambda: checked(libc.unshare(NEW_MOUNT)),
    "new network": lambda: checked(libc.unshare(NEW_NET)),
    "born into a user namespace": lambda: born_into(NEW_USER),
    "born into a network": lambda: born_into(NEW_USER | NEW_NET),
    "enter namespace of 1": lambda: entered("mnt"),
    "chroot": lambda: os.chroot("/tmp"),
    "pivot_root": lambda: call("pivot_root", b"/tmp", b"/tmp"),
    "become root": lambda: os.setuid(0),
    "join group root": lambda: os.setgroups([0]),
    "chown": lambda: (open("/tmp/mine", "w").close(), os.chown("/tmp/mine", 0, 0)),
    "trace 1": lambda: checked(libc.ptrace(PTRACE_ATTACH, 1, None, None)),
    "memory of 1": lambda: opened("/proc/1/mem", os.O_RDWR),
    "bpf": lambda: call("bpf", 0, bytes(128), 128),
    "userfaultfd": lambda: call("userfaultfd", 0),
    "keyctl": lambda: call("keyctl", 0, -3, 1),
    "add_key": lambda: call("add_key", b"user", b"name", b"value", 5, -3),
    "perf_event_open": lambda: call("perf_event_open", bytes([1, 0, 0, 0, 128]) + bytes(123), 0, -1, -1, 0),
    "io_uring": lambda: call("io_uring_setup", 1, ctypes.create_string_buffer(128)),
    "load module": lambda: call("init_module", None, 0, b""),
    "load module file": lambda: call("finit_module", 0, b"", 0),
    "kexec": lambda: call("kexec_load", 0, 0, None, 0),
    "reboot": lambda: call("reboot", 0, 0, 0, None),
    "swapon": lambda: call("swapon", b"/tmp/none", 0),
    "open by handle": lambda: call("open_by_handle_at", 0, bytes(16), 0),
    "set clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
    "set host name": lambda: socket.sethostname("elsewhere"),
    "ports": lambda: checked(libc.ioperm(0x80, 1, 1)),
    "priority": lambda: os.nice(-5),
    "more files": lambda: checked(libc.setrlimit(resource.RLIMIT_NOFILE, (ctypes.c_ulong * 2)(4096, 4096))),
    "disk node": lambda: (os.mknod("/tmp/disk", stat.S_IFBLK | 0o666, os.makedev(8, 0)), opened("/tmp/disk", 0)),
    "memory node": lambda: (os.mknod("/tmp/mem", stat.S_IFCHR | 0o666, os.makedev(1, 1)), opened("/tmp/mem", 0)),
    "/dev/mem": lambda: opened("/dev/mem", os.O_RDONLY),
    "/dev/kmsg": lambda: opened("/dev/kmsg", os.O_RDONLY),
    "/dev/fuse": lambda: opened("/dev/fuse", os.O_RDWR),
    "/dev/kvm": lambda: opened("/dev/kvm", os.O_RDWR),
    "/proc/kcore": lambda: opened("/proc/kcore", os.O_RDONLY) if os.path.getsize("/proc/kcore") else os.nice(-1),
    "/proc/sysrq-trigger": lambda: opened("/proc/sysrq-trigger", os.O_WRONLY),
    "core_pattern": lambda: opened("/proc/sys/kernel/core_pattern", os.O_WRONLY),
    "modprobe": lambda: opened("/proc/sys/kernel/modprobe", os.O_WRONLY),
    "uevent_helper": lambda: opened("/sys/kernel/uevent_helper", os.O_WRONLY),
    "release_agent": lambda: opened("/sys/fs/cgroup/memory/release_agent", os.O_WRONLY),
    "cgroup": lambda: os.mkdir("/sys/fs/cgroup/memory/mine"),
    "interpreter": lambda: opened("/proc/self/exe", os.O_WRONLY),
    "interpreter of 1": lambda: opened("/proc/1/exe", os.O_WRONLY),
    "write /": lambda: open("/mine", "w"),
    "write /etc": lambda: open("/etc/mine", "w"),
    "write /usr": lambda: open("/usr/local/mine", "w"),
    "write /proc/sys": lambda: open("/proc/sys/vm/drop_caches", "w"),
    "execute in /sandbox": lambda: executed("/sandbox"),
    "execute in /tmp": lambda: executed("/tmp"),
    "execute in /dev/shm": lambda: executed("/dev/shm"),
    "docker socket": lambda: connected(socket.AF_UNIX, "/var/run/docker.sock"),
    "containerd socket": lambda: connected(socket.AF_UNIX, "/run/containerd/containerd.sock"),
    "abstract socket of the host": lambda: connected(socket.AF_UNIX, "\0" + given["abstract"]),
    "loopback of the host": lambda: connected(socket.AF_INET, ("127.0.0.1", given["port"])),
    "gateway": lambda: connected(socket.AF_INET, ("172.17.0.1", given["port"])),
    "metadata": lambda: connected(socket.AF_INET, ("169.254.169.254", 80)),
    "metadata, IPv6": lambda: connected(socket.AF_INET6, ("fd00:ec2::254", 80)),
    "name server": lambda: connected(socket.AF_INET, ("1.1.1.1", 53), socket.SOCK_DGRAM),
    "broadcast": lambda: connected(socket.AF_INET6, ("ff02::1%lo", 9, 0, 1), socket.SOCK_DGRAM),
    "packet socket": lambda: bound(socket.AF_PACKET, socket.SOCK_RAW),
    "raw socket": lambda: bound(socket.AF_INET, socket.SOCK_RAW, 1),
    "crypto socket": lambda: bound(socket.AF_ALG, socket.SOCK_SEQPACKET),
    "hypervisor socket": lambda: bound(socket.AF_VSOCK, socket.SOCK_STREAM),
    "fill /sandbox": lambda: filled("/sandbox/big", given["tmp_bytes"] * 3 // 2),
    "fill /tmp": lambda: filled("/tmp/big", given["tmp_bytes"] * 3 // 2),
    "fill /dev/shm": lambda: filled("/dev/shm/big", 17 << 20),
    "many processes": spawned,
    "much memory": lambda: bytearray(b"x" * (given["memory_bytes"] * 3 // 2)),
}


def outcome(act):
    """What becomes of an attempt in a process and session of its own: done, an errno's name, or a signal's number."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.alarm(5)
        code = 0
        try:
            act()
        except OSError as error:
            code = error.errno or 254
        except MemoryError:
            code = errno.ENOMEM
        except BaseException:
            code = 255
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for path in ("/sandbox/big", "/tmp/big", "/dev/shm/big", "/sandbox/program", "/tmp/program", "/dev/shm/program"):
        if os.path.exists(path):
            os.unlink(path)
    return "done" if code == 0 else f"signal {-code}" if code < 0 else errno.errorcode.get(code, f"exit {code}")


def first_line(*paths):
    for path in paths:
        try:
            with open(path) as file:
                return file.readline().strip()
        except OSError:
            pass
    return None


def listed(path):
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        return errno.errorcode[error.errno]


def setuid_files():
    found = []
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev")]
        for name in files:
            path = os.path.join(folder, name)
            if os.lstat(path).st_mode & 0o6000:
                found.append(path)
    return found


def descriptors():
    return [fd for fd in range(1024) if os.path.exists(f"/proc/self/fd/{fd}")]


with open("/proc/self/status") as file:
    status = dict(line.rstrip("\n").split(":", 1) for line in file)
with open("/proc/self/mounts") as file:
    mounts = {line.split()[1]: line.split()[3].split(",") for line in file}
namespaces = {}
for name in ("cgroup", "ipc", "mnt", "net", "pid", "uts"):
    try:
        namespaces[name] = os.readlink("/proc/self/ns/" + name)
    except OSError:
        pass
CGROUP = "/sys/fs/cgroup"
facts = {
    "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
    "capabilities": [
        status["Cap" + kind].strip() for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb") if "Cap" + kind in status
    ],
    "no_new_privs": libc.prctl(39, 0, 0, 0, 0),
    "seccomp": status.get("Seccomp", "").strip(),
    "seccomp_filters": int(status.get("Seccomp_filters", 2)),
    "limits": {
        name: resource.getrlimit(getattr(resource, "RLIMIT_" + name))
        for name in ("CORE", "NOFILE", "FSIZE", "RTPRIO", "NICE")
    },
    "oom_score_of_1": first_line("/proc/1/oom_score_adj"),
    "memory_and_swap": first_line(CGROUP + "/memory/memory.memsw.limit_in_bytes", CGROUP + "/memory.swap.max"),
    "oom_control": first_line(CGROUP + "/memory/memory.oom_control"),
    "cpu": first_line(CGROUP + "/cpu/cpu.cfs_quota_us", CGROUP + "/cpu,cpuacct/cpu.cfs_quota_us", CGROUP + "/cpu.max"),
    "mounts": {path: mounts.get(path) for path in ("/", "/sandbox", "/tmp", "/dev/shm")},
    "mounted": sorted(path for path in mounts if not path.startswith(("/proc", "/sys", "/dev"))),
    "devices": sorted(os.listdir("/dev")),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "host_name": socket.gethostname(),
    "namespaces": namespaces,
    "processes": sum(name.isdigit() for name in os.listdir("/proc")),
    "descriptors": descriptors(),
    "environment": dict(os.environ),
    "secret": [name for name in ("environ", "cmdline") if seen_in_proc(name)],
    "root_of_1": listed("/proc/1/root") in (listed("/"), "EACCES", "EPERM"),
    "setuid_files": setuid_files(),
    "left_by_others": sorted({p for d in ("/sandbox", "/tmp", "/dev/shm") for p in os.listdir(d)} - {"main.py", "out"}),
}
facts["attempts"] = {
    name: outcome(act)
    for name, act in ATTEMPTS.items()
    if not (given["gentle"] and name in ("many processes", "much memory"))
}
print(json.dumps(facts))
