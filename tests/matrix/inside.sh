#!/usr/bin/env bash
# Runs as root in a mount namespace of its own (unshare --mount): goes into the Debian tree ROOT, which shares this
# host's processes, devices and cgroups, and starts an engine there. Its socket is SHARED/engine.sock outside.
# Usage: inside.sh ROOT SHARED ENGINE
set -euo pipefail
root=$1 shared=$2 engine=$3

mount --make-rprivate /
mount --rbind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
# crun refuses hosts that show both versions of cgroups. What is in use is version 1; nothing outside changes.
if mountpoint -q "$root/sys/fs/cgroup/unified"; then umount "$root/sys/fs/cgroup/unified"; fi
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/shared" "$root/old"
mount --bind "$shared" "$root/shared"
cd "$root"
# A chroot would not do: containerd looks for the mount that / is.
pivot_root . old
umount -l /old
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

podman_service() { podman --cgroup-manager=cgroupfs system service --time=0 unix:///shared/engine.sock; }

case $engine in
  docker | crun)
    # Not --bridge=none: that would remove docker0, which is the other engine's.
    exec dockerd -H unix:///shared/engine.sock --config-file /shared/daemon.json --data-root /var/lib/matrix-docker \
      --exec-root /run/docker --pidfile /run/docker.pid --iptables=false --ip6tables=false
    ;;
  podman) podman_service ;;
  podman-runsc)
    printf '[engine]\nruntime = "runsc"\n[engine.runtimes]\nrunsc = ["/usr/local/bin/runsc-sandbox"]\n' >/run/runsc.conf
    CONTAINERS_CONF_OVERRIDE=/run/runsc.conf podman_service
    ;;
  rootless)
    id evaluator >/dev/null 2>&1 || useradd --create-home --uid 4242 evaluator
    mkdir -p /run/user/4242
    chown evaluator /run/user/4242 /shared
    cd /home/evaluator
    exec setpriv --reuid=4242 --regid=4242 --clear-groups \
      env HOME=/home/evaluator XDG_RUNTIME_DIR=/run/user/4242 \
      podman --cgroup-manager=cgroupfs system service --time=0 unix:///shared/engine.sock
    ;;
esac
