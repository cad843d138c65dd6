#!/usr/bin/env bash
# Runs as root in the machine of machine.sh: starts an engine there, and the tests on it.
# Usage: guest.sh PYTHON ENGINE [PYTEST ARGUMENTS]
set -euo pipefail
python=$1 engine=$2
shift 2
export HOME=/root PYTHONDONTWRITEBYTECODE=1

# docker_with CGROUP_DRIVER PYTHON: Docker, and in it the sandbox image of that Python.
docker_with() {
  local runtimes=
  [[ $engine != *-runsc ]] || runtimes='"runsc": {"path": "/usr/bin/runsc", "runtimeArgs": ["--network=none"]}'
  mkdir -p /etc/docker
  cat >/etc/docker/daemon.json <<JSON
{
  "bridge": "none", "iptables": false, "ip6tables": false, "exec-opts": ["native.cgroupdriver=$1"],
  "runtimes": {$runtimes}
}
JSON
  systemctl unmask --quiet containerd.service docker.socket docker.service
  systemctl start docker
  "$2" -I dist/crucible-worker.pyz image build >/dev/null
}

tests=(tests/engines tests/adversarial tests/worker)
case $engine in
  cgroup2) docker_with systemd "$python" ;;
  cgroup2-cgroupfs) docker_with cgroupfs "$python" ;;
  cgroup2-runsc)
    docker_with systemd "$python"
    export TEST_SLOWNESS=5
    tests=(-k runsc tests/engines/test_{accounting,boot,cgroups,sandbox}.py tests/adversarial/test_escape.py)
    ;;
  units)
    docker_with systemd /usr/bin/python3
    tests=(tests/matrix/units.py)
    ;;
  rootless-*)
    modprobe tun
    chmod 0666 /dev/net/tun # as udev has it
    export TEST_ENGINE=$engine
    tests=(tests/matrix/rootless.py)
    ;;
esac

[[ $# != 0 ]] || set -- "${tests[@]}"
exec "$python" -m pytest -q -p no:cacheprovider "$@"
