#!/usr/bin/env bash
# Runs the engine tests on another engine than this host's, made of Debian sid. docs/engines.md says more.
# Usage: run.sh PYTHON ENGINE [PYTEST ARGUMENTS]; ENGINE is docker, crun, podman, podman-runsc, rootless,
# cgroup2, cgroup2-cgroupfs, cgroup2-runsc, rootless-docker, rootless-podman, or units (the systemd units).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=$1 engine=$2
shift 2

root=${MATRIX_ROOT:-$PWD/build/matrix-root}
shared=$(mktemp -d /tmp/cw-matrix-XXXXXX)
chmod 755 "$shared"
pid=

say() { printf '%s\n' "matrix: $*" >&2; }

finish() {
  if [[ -n $pid ]]; then
    kill -TERM -- "-$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  fi
  rm -rf "$shared"
}
trap finish EXIT

if [[ ! -e $root/usr/bin/podman || ! -e $root/usr/bin/linux.uml ]]; then
  say "making a Debian sid in $root; this takes some minutes"
  rm -rf "$root"
  packages=docker.io,podman,crun,runc,conmon,uidmap,passt,fuse-overlayfs,ca-certificates,user-mode-linux
  debootstrap --variant=minbase --include="$packages" sid "$root" >"$shared/debootstrap.log"
fi
# Debian sid's own runsc of July 2024 is built with a Go that it does not fit: it panics in every other sandbox.
install -m 755 "$(command -v runsc)" "$root/usr/local/bin/runsc"
printf '#!/bin/sh\nexec /usr/local/bin/runsc --network=none "$@"\n' >"$root/usr/local/bin/runsc-sandbox"
chmod 755 "$root/usr/local/bin/runsc-sandbox"
cat >"$shared/daemon.json" <<'JSON'
{"runtimes": {"crun": {"path": "/usr/bin/crun"}, "runsc": {"path": "/usr/local/bin/runsc-sandbox"}}}
JSON

case $engine in
  cgroup2 | cgroup2-cgroupfs | cgroup2-runsc | units | rootless-docker | rootless-podman)
    tests/matrix/machine.sh "$python" "$root" "$engine" "$@"
    exit
    ;;
  docker) runtime=runc ;;
  crun | podman | rootless) runtime=crun ;;
  podman-runsc) runtime=runc ;; # which it does not have, so that only gVisor is tested
  *)
    say "no engine is called '$engine'; there are docker, crun, podman, podman-runsc, rootless, cgroup2, cgroup2-cgroupfs, cgroup2-runsc, units, rootless-docker and rootless-podman"
    exit 64
    ;;
esac

setsid unshare --mount bash tests/matrix/inside.sh "$root" "$shared" "$engine" >"$shared/engine.log" 2>&1 </dev/null &
pid=$!
export DOCKER_HOST=unix://$shared/engine.sock TEST_RUNTIME=$runtime
for ((left = 60; left > 0; left--)); do
  if curl --silent --fail --max-time 5 --unix-socket "$shared/engine.sock" http://engine/_ping >/dev/null; then break; fi
  sleep 1
done
if ((left == 0)); then
  tail -n 5 "$shared/engine.log" >&2
  say "$engine does not answer after 60 seconds"
  exit 69
fi

"$python" -m crucible_worker image build
if [[ $engine == rootless ]]; then
  # Where the host lets nobody but root limit anything, the one right answer is a refusal.
  echo 'print("ran")' | "$python" -m crucible_worker exec --engines "docker=$runtime" --engine-fallback never -
  exit
fi
if [[ $# == 0 ]]; then set -- tests/engines tests/adversarial tests/worker; fi
"$python" -m pytest -q "$@"
