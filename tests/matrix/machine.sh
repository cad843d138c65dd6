#!/usr/bin/env bash
# Boots a Debian of its own, with systemd and cgroup version 2 alone, and runs the engine tests in it. The host needs no
# virtualisation: its kernel is Linux compiled to run as a process (user-mode Linux), or, for gVisor, which asks for more
# than that one has, Debian's own on processors that QEMU emulates, many times slower.
# Usage: machine.sh PYTHON SID ENGINE [PYTEST ARGUMENTS]; SID is a Debian sid that has user-mode-linux.
set -euo pipefail
python=$1 sid=$2 engine=$3
shift 3

packages="systemd systemd-sysv dbus dbus-user-session libpam-systemd kmod procps python3 docker.io iptables"
case $engine in
  rootless-docker) suite=trixie packages+=" docker-cli rootlesskit uidmap slirp4netns iproute2" ;;
  rootless-podman) suite=sid packages+=" podman crun uidmap passt" ;;
  *) suite=bookworm packages+=" linux-image-amd64 initramfs-tools apparmor runsc redis-server openssl faketime nodejs node-cjs-module-lexer tcc libc6-dev busybox-static docker-registry" ;;
esac
root=${MACHINE_ROOT:-$PWD/build/machine-root}-$suite
shared=$(mktemp -d /tmp/cw-machine-XXXXXX)
trap 'rm -rf "$shared"' EXIT

say() { printf '%s\n' "matrix: $*" >&2; }

# Two machines of one root at once would meet in it.
exec {lock}>"$root.lock"
flock "$lock"
if [[ $(cat "$root/packages" 2>/dev/null) != "$packages" ]]; then
  say "making a Debian $suite with systemd in $root"
  rm -rf "$root" "$root.part"
  # In two steps: debootstrap alone cannot configure podman. A mirror may lag behind with sid.
  if ! { debootstrap --variant=minbase "$suite" "$root.part" &&
    DEBIAN_FRONTEND=noninteractive chroot "$root.part" bash -c \
      "apt-get -o Acquire::Check-Valid-Until=no update && apt-get install --yes --no-install-recommends $packages && apt-get clean"; } \
    >"$shared/make.log" 2>&1; then
    tail -n 5 "$shared/make.log" >&2
    say "that has failed"
    exit 69
  fi
  printf '%s' "$packages" >"$root.part/packages"
  mv "$root.part" "$root"
fi

# What the host's own Python and the tree are in, each in the same place there.
folders=$(printf '%s\n' "$PWD" "$("$python" -c 'import sys; print(sys.prefix, sys.base_prefix, sep="\n")')" |
  grep -vx /usr | sort -u)
printf '%s\n' "$folders" >"$shared/folders"
printf '%q ' cd "$PWD" >"$shared/command"
printf '\nexec ' >>"$shared/command"
printf '%q ' bash tests/matrix/guest.sh "$python" "$engine" "$@" >>"$shared/command"

mkdir -p "$root/lib/modules" "$root/host"
if [[ $engine == cgroup2-runsc ]]; then
  host="mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap host /host"
else
  cp -R "$sid"/usr/lib/uml/modules/. "$root/lib/modules/"
  host="mount -t hostfs -o /host none /host"
fi
for unit in docker.service docker.socket containerd.service redis-server.service docker-registry.service; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
cat >"$root/etc/systemd/system/tests.service" <<UNIT
[Unit]
After=multi-user.target
[Service]
Type=oneshot
# hostfs takes its options as they are, as mount(2) has them.
Environment=LIBMOUNT_FORCE_MOUNT2=always
ExecStart=/bin/$host
ExecStart=/bin/bash -c 'while read -r folder; do mkdir -p \$folder && mount --bind /host\$folder \$folder; done </host$shared/folders'
ExecStart=/bin/bash -c 'bash /host$shared/command >/host$shared/output 2>&1; echo \$? >/host$shared/status'
ExecStopPost=/sbin/poweroff
UNIT
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -sf ../tests.service "$root/etc/systemd/system/multi-user.target.wants/tests.service"
mke2fs -q -t ext4 -d "$root" "$shared/disk" 8G >/dev/null

on_uml() { # it wants sid's libc, and the host's files at /host
  # shellcheck disable=SC2016 # expanded in there
  unshare --mount --propagation private bash -c '
    mkdir -p "$0/host" && mount --rbind / "$0/host" && mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev"
    exec chroot "$0" env TMPDIR=/dev/shm /usr/bin/linux.uml mem=4G root=/dev/ubda rw "ubd0=/host$1/disk" con=null con0=null,fd:1
  ' "$sid" "$shared"
}

on_qemu() {
  qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp "$(nproc)" -m 4G -nodefaults -display none -no-reboot \
    -kernel "$shared/kernel" -initrd "$shared/initrd" -append "root=/dev/vda rw console=ttyS0 panic=-1" \
    -drive "file=$shared/disk,if=virtio,format=raw,cache=unsafe" \
    -virtfs local,path=/,mount_tag=host,security_model=none,multidevs=remap -serial stdio
}

if [[ $engine == cgroup2-runsc ]]; then
  cp "$root"/boot/vmlinuz-* "$shared/kernel"
  cp "$root"/boot/initrd.img-* "$shared/initrd"
fi
exec {lock}>&-
: >"$shared/output"
tail -n +1 -f "$shared/output" &
{ if [[ $engine == cgroup2-runsc ]]; then on_qemu; else on_uml; fi; } >"$shared/console" 2>&1 </dev/null || true
sleep 1 # tail has the last of it by then
kill %1
if [[ ! -e $shared/status ]]; then
  tail -n 20 "$shared/console" >&2
  say "the machine has ended without a result"
  exit 69
fi
exit "$(<"$shared/status")"
