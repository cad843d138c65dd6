#!/usr/bin/env bash
# Runs as root in the machine of machine.sh: starts an engine there, and the tests on it.
# Usage: guest.sh PYTHON ENGINE [PYTEST ARGUMENTS]
set -euo pipefail
python=$1 engine=$2
shift 2
export HOME=/root PYTHONDONTWRITEBYTECODE=1

docker_with() {
  mkdir -p /etc/docker
  printf '{"bridge": "none", "iptables": false, "ip6tables": false, "exec-opts": ["native.cgroupdriver=%s"]}\n' "$1" \
    >/etc/docker/daemon.json
  systemctl unmask --quiet containerd.service docker.socket docker.service
  systemctl start docker
}

case $engine in
  cgroup2) docker_with systemd ;;
  cgroup2-cgroupfs) docker_with cgroupfs ;;
esac

[[ $# != 0 ]] || set -- tests/engines tests/adversarial tests/worker
"$python" -I dist/crucible-worker.pyz image build >/dev/null
exec "$python" -m pytest -q -p no:cacheprovider "$@"
