#!/usr/bin/env bash
# Runs as root in the machine of machine.sh: starts an engine there, and the tests on it.
# Usage: guest.sh PYTHON ENGINE [PYTEST ARGUMENTS]
set -euo pipefail
python=$1 engine=$2 image=$1
shift 2
export HOME=/root PYTHONDONTWRITEBYTECODE=1

docker_with() {
  mkdir -p /etc/docker
  printf '{"bridge": "none", "iptables": false, "ip6tables": false, "exec-opts": ["native.cgroupdriver=%s"]}\n' "$1" \
    >/etc/docker/daemon.json
  systemctl unmask --quiet containerd.service docker.socket docker.service
  systemctl start docker
}

tests="tests/engines tests/adversarial tests/worker"
case $engine in
  cgroup2) docker_with systemd ;;
  cgroup2-cgroupfs) docker_with cgroupfs ;;
  units)
    docker_with systemd
    image=/usr/bin/python3
    tests=tests/matrix/units.py
    ;;
  rootless-*)
    modprobe tun
    chmod 0666 /dev/net/tun # as udev has it
    export TEST_ENGINE=$engine
    exec "$python" -m pytest -q -p no:cacheprovider "${@:-tests/matrix/rootless.py}"
    ;;
esac

"$image" -I dist/crucible-worker.pyz image build >/dev/null
# shellcheck disable=SC2086 # several words
[[ $# != 0 ]] || set -- $tests
exec "$python" -m pytest -q -p no:cacheprovider "$@"
