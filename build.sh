#!/usr/bin/env bash
# Builds dist/crucible-worker.pyz, and shows or tests it. './build.sh --help' lists what it does.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
umask 022
# One zip from one source: neither the date, the place, the locale nor the hash seed may leave a trace in it.
export LC_ALL=C.UTF-8 TZ=UTC PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=315532800
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONPATH PYTHONHOME PIP_REQUIRE_VIRTUALENV PIP_USER PIP_TARGET PIP_PREFIX

readonly PYZ=dist/crucible-worker.pyz
readonly CACHE=${BUILD_CACHE:-build}
readonly MAX_BYTES=3000000
readonly SOCKET=unix:///var/run/docker.sock
readonly ENGINE_LOG=build/dockerd.log
readonly PID_FILE=/var/run/docker.pid

install_allowed=yes
engine_started=

usage() {
  cat <<'EOF'
Usage: ./build.sh [COMMAND] [ARGUMENTS]

  (none)               build dist/crucible-worker.pyz and its .sha256
  demo [ARGUMENTS]     build it and run its demo
  test [PYTEST ARGS]   build it and run all tests, on Docker and gVisor
  matrix ENGINE [PYTEST ARGS]
                       run the engine tests on another engine, made of Debian sid: docker, crun, podman, podman-runsc,
                       rootless; or on Debian 12's Docker in a machine with cgroup version 2 alone and systemd:
                       cgroup2, cgroup2-cgroupfs, and cgroup2-runsc for gVisor; units, rootless-docker and
                       rootless-podman test the deployments of docs/operations.md there; takes five minutes to
                       an hour, and root
  bench [ARGUMENTS]    compare sandboxes side by side and write bench/RESULTS.md; takes a quarter of an hour
  release              make dist/crucible-worker-VERSION.tar, all that a host without a network needs
  lint                 ruff, mypy and shellcheck
  lock                 renew requirements.lock and requirements-dev.lock from pyproject.toml
  dev                  make the development environment and print its path
  clean                remove build/ and dist/

  --no-install         (before COMMAND) never install or start anything on this host

demo and test need a Docker Engine. As root, where none answers, they install Debian's (docker.io, iptables,
runsc), say so first, start it, and stop it again at the end. The packages stay.

Environment: PYTHON, the Python to build with (3.11 or newer); DOCKER_HOST; BUILD_CACHE, where tools and
downloads are kept (build/); SIGNING_KEY, the OpenSSH private key that signs a release.

Exit codes: 0 done; 64 usage; 69 something is missing that may not be installed; else the failing command's.

Examples:
  ./build.sh
  ./build.sh test -k packaging
  ./build.sh --no-install demo
EOF
}

say() { printf '%s\n' "build.sh: $*" >&2; }

give_up() {
  say "$2"
  exit "$1"
}

# --- what the host must have -----------------------------------------------------------------------------------

may_install() { [[ $install_allowed == yes && $EUID == 0 ]] && command -v apt-get >/dev/null; }

# install REASON PACKAGE...: with Debian's package manager, or exit saying what is missing.
install() {
  local reason=$1
  shift
  if ! may_install; then
    give_up 69 "$reason. Install it ('apt-get install $*'), or run this as root on Debian or Ubuntu without --no-install."
  fi
  say "$reason: installing $* with apt-get"
  mkdir -p build
  if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } \
    >build/apt.log 2>&1 </dev/null; then
    tail -n 5 build/apt.log >&2
    give_up 69 "apt-get failed; build/apt.log has the whole of it"
  fi
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
    if new_enough "$candidate"; then
      python=$candidate
      return
    fi
    [[ $candidate != "${PYTHON-}" ]] || give_up 64 "PYTHON=$PYTHON is not a Python of 3.11 or newer"
  done
  return 1
}

need_python() {
  find_python || {
    install "there is no Python of 3.11 or newer" python3 python3-venv
    find_python || give_up 69 "this system's Python is older than 3.11; set PYTHON to a newer one"
  }
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    install "$python cannot make virtual environments" \
      "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
  fi
}

# environment FOLDER LOCK: a virtual environment with exactly what LOCK lists; nothing happens if it is there.
environment() {
  local stamp
  stamp="$("$python" -c 'import sys; print(sys.version, sys.prefix)') $(sha256sum <"$2")"
  [[ "$(cat "$1/stamp" 2>/dev/null)" != "$stamp" ]] || return 0
  say "making $1"
  rm -rf "$1"
  "$python" -m venv "$1"
  "$1/bin/python" -m pip install --quiet --require-hashes --no-deps --only-binary=:all: -r "$2"
  printf '%s' "$stamp" >"$1/stamp"
}

# --- the build -------------------------------------------------------------------------------------------------

build_tools() {
  tools=$CACHE/tools-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  mkdir -p "$CACHE"
  # The rest of that lock serves development.
  awk '/^[a-z]/ {keep = /^(click|flit-core|pip|setuptools|shiv)==/} keep' requirements-dev.lock >"$tools.lock"
  environment "$tools" "$tools.lock"
}

# The wheels of requirements.lock, each the none-any one whose hash is there.
download() {
  wheels=$CACHE/wheels-$(sha256sum <requirements.lock | cut -c 1-16)
  [[ ! -e $wheels/complete ]] || return 0
  rm -rf "$wheels"
  "$tools/bin/python" -m pip download --quiet --dest "$wheels" --require-hashes --no-deps --only-binary=:all: \
    --platform any --implementation py --abi none -r requirements.lock
  touch "$wheels/complete"
}

# Unpack instead of installing: pip would leave RECORD, direct_url.json and scripts that name this machine.
stage() {
  rm -rf build/stage build/own
  mkdir -p build/stage build/own
  "$tools/bin/python" -c 'import flit_core.buildapi as flit; flit.build_wheel("build/own")'
  local wheel
  for wheel in "$wheels"/*.whl build/own/*.whl; do
    "$tools/bin/python" -m zipfile -e "$wheel" build/stage
  done
  local compiled
  compiled=$(find build/stage -name '*.so' -o -name '*.pyd')
  [[ -z $compiled ]] || give_up 1 "compiled code in the bundle: $compiled"
  find build/stage -type d -exec chmod 755 {} + -o -type f -exec chmod 644 {} +
}

# canonical FROM TO: the same zip, sorted, with one time and one mode. shiv 1.0.8 keeps the order and the modes in
# which its own files happen to be installed. What runs first is launch.py; unpack.py calls shiv.
canonical() {
  "$tools/bin/python" - "$1" "$2" <<'EOF'
import os
import pathlib
import sys
import zipfile


def entry(name):
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.create_system = 3  # Unix, so that the mode counts
    info.external_attr = 0o100644 << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


OURS = {"__main__.py": "crucible_worker/launch.py", "_unpack.py": "crucible_worker/unpack.py"}
source, target = sys.argv[1:]
with zipfile.ZipFile(source) as old, open(target, "wb") as out:
    out.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(out, "w") as new:
        for name in sorted({name for name in old.namelist() if not name.endswith("/")} | OURS.keys()):
            data = pathlib.Path(OURS[name]).read_bytes() if name in OURS else old.read(name)
            new.writestr(entry(name), data, compresslevel=9)
os.chmod(target, 0o755)
EOF
}

build() {
  need_python
  build_tools
  download
  stage
  mkdir -p dist
  "$tools/bin/python" -m shiv.cli --reproducible --site-packages build/stage -e crucible_worker.__main__:main \
    -p '/usr/bin/env python3' -o build/shiv.pyz >build/shiv.log
  canonical build/shiv.pyz "$PYZ.part"
  local size
  size=$(wc -c <"$PYZ.part")
  ((size < MAX_BYTES)) || give_up 1 "$PYZ would have $size bytes; the budget is $MAX_BYTES"
  mv "$PYZ.part" "$PYZ"
  (cd dist && sha256sum crucible-worker.pyz >crucible-worker.pyz.sha256)
  say "$PYZ, $size bytes, sha256 $(cut -c 1-64 "$PYZ.sha256")"
}

# --- a Docker Engine -------------------------------------------------------------------------------------------

# ask EXPRESSION: print a Python expression over the low-level client `api`; fails where no engine answers.
ask() {
  PYTHONPATH=build/stage "$python" -c '
import os, sys, docker
try:
    api = docker.APIClient(base_url=os.environ["DOCKER_HOST"], version="auto", timeout=20)
    print(eval(sys.argv[1]))
except Exception as error:
    sys.exit(" ".join(str(error).split())[:300])
' "$1"
}

engine_answers() { ask 'api.version()["Version"]' >/dev/null 2>&1; }
has_gvisor() { [[ $(ask '"runsc" in api.info()["Runtimes"]') == True ]]; }
gvisor_works() {
  ask '[api.start(c := api.create_container("crucible-sandbox:python", ["python3", "-c", ""], host_config=
    api.create_host_config(runtime="runsc", network_mode="none"))["Id"]), api.wait(c), api.remove_container(c)][1]' \
    >/dev/null
}

# within SECONDS COMMAND...: try once a second until it succeeds.
within() {
  local left=$1
  shift
  until "$@"; do
    ((left-- > 0)) || return 1
    sleep 1
  done
}

# gVisor's own network stack fails in some kernels' root network namespace, and a sandbox has no network anyway:
# hence --network=none. An entry that is there already stays as it is.
register_gvisor() {
  mkdir -p /etc/docker
  "$python" - <<'EOF' || give_up 69 "/etc/docker/daemon.json cannot be read; repair it or add the runtime runsc yourself"
import json
import os
import shutil

path = "/etc/docker/daemon.json"
text = open(path).read() if os.path.exists(path) else ""
config = json.loads(text or "{}")
entry = {"path": shutil.which("runsc"), "runtimeArgs": ["--network=none"]}
if "runsc" not in config.setdefault("runtimes", {}):
    config["runtimes"]["runsc"] = entry
    with open(path + ".part", "w") as out:
        json.dump(config, out, indent=2)
    os.replace(path + ".part", path)
EOF
}

has_systemd() { [[ -d /run/systemd/system ]]; }

start_engine() {
  engine_answers && return # its package may have started it
  say "starting dockerd (log: $ENGINE_LOG)"
  if has_systemd; then
    systemctl start docker 2>"$ENGINE_LOG" || true
  else
    setsid nohup dockerd >"$ENGINE_LOG" 2>&1 </dev/null &
  fi
  within 60 engine_answers && return
  tail -n 5 "$ENGINE_LOG" >&2
  give_up 69 "dockerd does not answer after 60 seconds; $ENGINE_LOG has the whole of it"
}

stop_engine() {
  [[ -n $engine_started ]] || return 0
  say "stopping the dockerd that was started here (installed packages stay)"
  if has_systemd; then
    systemctl stop docker.socket docker
    return
  fi
  local pid
  pid=$(cat "$PID_FILE" 2>/dev/null) && kill "$pid" 2>/dev/null || return 0
  within 30 gone "$pid" || say "dockerd ($pid) is still there"
}

has_all() { command -v "$@" >/dev/null && [[ $(command -v "$@" | wc -l) == "$#" ]]; }
gone() { ! kill -0 "$1" 2>/dev/null; }

ensure_engine() {
  export DOCKER_HOST=${DOCKER_HOST:-$SOCKET}
  engine_answers && return
  local reason="no Docker Engine answers at $DOCKER_HOST"
  [[ $DOCKER_HOST == "$SOCKET" ]] || give_up 69 "$reason: $(ask 'api' 2>&1 || true)"
  [[ $install_allowed == yes && $EUID == 0 ]] ||
    give_up 69 "$reason. Start it, add this user to its group, set DOCKER_HOST, or run this as root without --no-install"
  trap stop_engine EXIT
  engine_started=yes
  if ! command -v dockerd >/dev/null; then install "$reason" docker.io iptables runsc; fi
  if command -v runsc >/dev/null; then register_gvisor; fi
  start_engine
}

reload_engine() {
  if has_systemd; then systemctl reload docker; else kill -HUP "$(cat "$PID_FILE")"; fi
  within 15 has_gvisor
}

ensure_gvisor() {
  has_gvisor && return
  [[ $DOCKER_HOST == "$SOCKET" ]] || give_up 69 "the Docker Engine at $DOCKER_HOST has no runtime runsc; add gVisor to it"
  command -v runsc >/dev/null || install "the tests need gVisor" runsc
  [[ $EUID == 0 ]] || give_up 69 "the Docker Engine has no runtime runsc; add gVisor to /etc/docker/daemon.json"
  say "adding the runtime runsc to /etc/docker/daemon.json and reloading dockerd"
  register_gvisor
  reload_engine || give_up 69 "dockerd has not taken up the runtime runsc; its log says why"
}

# --- commands --------------------------------------------------------------------------------------------------

dev_environment() {
  dev=$CACHE/dev-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  mkdir -p "$CACHE"
  environment "$dev" requirements-dev.lock
}

demo() {
  build
  ensure_engine
  has_gvisor || say "this Docker Engine has no gVisor (runtime runsc); the demo goes on with Docker alone"
  "$python" -I "$PYZ" demo "$@"
}

run_tests() {
  build
  dev_environment
  ensure_engine
  ensure_gvisor
  command -v redis-server >/dev/null || install "the tests need a Redis server" redis-server
  command -v faketime >/dev/null || install "the tests set clocks" faketime
  command -v openssl >/dev/null || install "the tests make certificates" openssl
  if ! has_all node tcc busybox docker-registry; then
    install "the tests need languages other than Python, and a registry" nodejs tcc libc6-dev busybox-static docker-registry
  fi
  command -v chromium >/dev/null || install "the tests look at the status page" chromium fonts-dejavu-core
  command -v zsh >/dev/null || install "the tests complete commands in zsh" zsh
  command -v promtool >/dev/null || install "the tests check alert rules" prometheus
  if ! command -v mmdebstrap >/dev/null; then
    install "the tests run on Debian's newest Python" mmdebstrap debian-archive-keyring
  fi
  command -v systemd-analyze >/dev/null || install "the tests check systemd units" systemd
  "$python" -I "$PYZ" image build
  gvisor_works || give_up 69 "a first sandbox on gVisor failed; 'runtimeArgs' of runsc in /etc/docker/daemon.json may need --network=none"
  if [[ $# == 0 ]]; then both_halves; else "$dev/bin/python" -m pytest "$@"; fi
}

# Tests wait for engines and clocks most of their time: two halves side by side take little more than one.
both_halves() {
  local half=(tests/worker tests/faults tests/packaging) log=build/tests.log code=0 other
  half_of_tests other "${half[@]}" >"$log" 2>&1 </dev/null &
  other=$!
  half_of_tests one "${half[@]/#/--ignore=}" || code=$?
  say "waiting for the other half (${half[*]}; log: $log)"
  wait "$other" || code=$?
  cat "$log"
  return "$code"
}

# half_of_tests NAME PYTEST ARGS...: what fails beside the other half is tried once more, and must pass then.
half_of_tests() {
  local pytest=("$dev/bin/python" -m pytest -o "cache_dir=build/tests-$1")
  shift
  "${pytest[@]}" "$@" || "${pytest[@]}" --last-failed --last-failed-no-failures none "$@"
}

# One tar of everything: the same bytes from the same source, Python and key, whoever makes it and where.
release() {
  [[ -z ${SIGNING_KEY-} || -r $SIGNING_KEY ]] || give_up 64 "SIGNING_KEY=$SIGNING_KEY cannot be read"
  build
  local version name folder
  version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' crucible_worker/__init__.py)
  name=crucible-worker-$version
  folder=build/release/$name
  rm -rf build/release
  mkdir -p "$folder/images"
  cp "$PYZ" "$folder/"
  cp -R README.md CHANGELOG.md docs deploy "$folder/"
  "$python" -I "$PYZ" image build --output "$folder/images/crucible-sandbox-python.tar" >&2
  "$python" -I "$PYZ" image build --worker --output "$folder/images/$name.tar" >&2
  bill_of_materials "$folder" >"$folder/sbom.cdx.json"
  (cd "$folder" && find . -type f ! -name 'SHA256SUMS*' -printf '%P\0' | sort -z | xargs -0 sha256sum >SHA256SUMS)
  if [[ -n ${SIGNING_KEY-} ]]; then
    ssh-keygen -Y sign -q -n crucible-worker -f "$SIGNING_KEY" "$folder/SHA256SUMS"
  else
    say "SIGNING_KEY is not set: the release is not signed"
  fi
  tar -C build/release --sort=name --format=gnu --mtime=@0 --owner=0 --group=0 --numeric-owner \
    --mode=u+rwX,go+rX,go-w -cf "dist/$name.tar.part" "$name"
  mv "dist/$name.tar.part" "dist/$name.tar"
  (cd dist && sha256sum "$name.tar" >"$name.tar.sha256")
  say "dist/$name.tar, $(wc -c <"dist/$name.tar") bytes, sha256 $(cut -c 1-64 "dist/$name.tar.sha256")"
}

# bill_of_materials FOLDER: what is in a release, as CycloneDX 1.5 in JSON.
bill_of_materials() {
  "$python" -I - "$1" requirements.lock build/stage <<'EOF'
import hashlib
import importlib.metadata
import json
import platform
import re
import sys
from pathlib import Path

folder, lock, stage = map(Path, sys.argv[1:])
version = folder.name.removeprefix("crucible-worker-")
found = {d.name.lower().replace("_", "-"): d.metadata for d in importlib.metadata.distributions(path=[str(stage)])}


def sums(data):
    return [{"alg": "SHA-256", "content": hashlib.sha256(data).hexdigest()}]


def licenses(about):
    text = about.get("License-Expression")
    if text:
        return [{"expression": text}]
    named = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier", ()) if line.startswith("License ::")]
    return [{"license": {"name": name}} for name in named or [about.get("License") or "unknown"]]


def package(name, pinned, digest):
    purl = f"pkg:pypi/{name}@{pinned}"
    return {
        "type": "library", "bom-ref": purl, "name": name, "version": pinned, "purl": purl,
        "licenses": licenses(found[name]), "hashes": [{"alg": "SHA-256", "content": digest}],
    }


def needed(name):
    words = (re.match(r"[\w.-]+", text)[0] for text in found[name].get_all("Requires-Dist", ()) if "extra" not in text)
    return sorted(refs[word.lower().replace("_", "-")] for word in words if word.lower().replace("_", "-") in refs)


pins = re.findall(r"^(\S+)==(\S+) \\\n\s+--hash=sha256:(\w{64})", lock.read_text(), flags=re.MULTILINE)
refs = {name: f"pkg:pypi/{name}@{pinned}" for name, pinned, _ in pins}
root = {"type": "application", "bom-ref": "crucible-worker", "name": "crucible-worker", "version": version}
images = [
    {
        "type": "container", "bom-ref": path.name, "name": path.name, "version": version, "hashes": sums(path.read_bytes()),
        "properties": [{"name": "python", "value": platform.python_version()}],
    }
    for path in sorted(folder.glob("images/*.tar"))
]
graph = [{"ref": "crucible-worker", "dependsOn": needed("crucible-worker")}]
graph += [{"ref": ref, "dependsOn": needed(name)} for name, ref in refs.items()]
document = {
    "bomFormat": "CycloneDX", "specVersion": "1.5",
    "version": 1,
    "metadata": {"component": root | {"hashes": sums((folder / "crucible-worker.pyz").read_bytes())}},
    "components": [package(*pin) for pin in pins] + images,
    "dependencies": graph,
}
print(json.dumps(document, indent=2))
EOF
}

# Engines that this host does not have, each in a mount namespace of its own, beside the one that it has.
matrix() {
  [[ $# != 0 ]] || give_up 64 "matrix needs an engine. See ./build.sh --help"
  [[ $EUID == 0 ]] || give_up 69 "matrix needs root: it starts engines in mount namespaces of their own"
  build
  dev_environment
  command -v runsc >/dev/null || install "the engines get this host's gVisor" runsc
  has_all debootstrap curl || install "other engines are made of Debian packages" debootstrap curl
  [[ $1 != cgroup2-runsc ]] || has_all qemu-system-x86_64 || install "gVisor gets a machine of its own" qemu-system-x86
  tests/matrix/run.sh "$dev/bin/python" "$@"
}

# One image that every contender can work with: Debian's Python, a shell and coreutils.
bench_image() {
  ask "api.inspect_image('crucible-bench:python')" >/dev/null 2>&1 && return
  command -v debootstrap >/dev/null || install "the bench's image is made of Debian packages" debootstrap
  say "making the image crucible-bench:python"
  rm -rf build/bench-root
  debootstrap --variant=minbase --include=python3 stable build/bench-root >build/debootstrap.log
  tar -C build/bench-root --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' --exclude='./var/cache/*' -c . |
    docker import -c 'CMD ["/bin/sh"]' - crucible-bench:python >/dev/null
  rm -rf build/bench-root
}

bench() {
  build
  dev_environment
  ensure_engine
  ensure_gvisor
  bench_image
  local peers=$CACHE/peers
  if [[ ! -x $peers/bin/python ]]; then
    say "installing the other sandboxes into $peers"
    "$python" -m venv "$peers"
    "$peers/bin/python" -m pip install --quiet -r bench/peers.txt
  fi
  PYTHONPATH=. "$dev/bin/python" bench/compare.py --image crucible-bench:python --peers "$peers/bin/python" "$@"
}

lint() {
  need_python
  dev_environment
  "$dev/bin/ruff" check --extend-exclude build .
  "$dev/bin/ruff" format --check --extend-exclude build .
  "$dev/bin/mypy"
  if ! command -v shellcheck >/dev/null && may_install; then install "shell scripts are checked" shellcheck; fi
  if command -v shellcheck >/dev/null; then shellcheck build.sh .ci/run tests/matrix/*.sh crucible_worker/engines/boot.sh; else say "no shellcheck here; skipped"; fi
}

# Pin everything for every platform, then keep of the bundle's packages only what has a none-any wheel, by its hash.
lock() {
  need_python
  local uv=$CACHE/uv/bin/uv folder=build/lock
  [[ -x $uv ]] || { "$python" -m venv "$CACHE/uv" && "$CACHE/uv/bin/python" -m pip install --quiet uv; }
  "$uv" pip compile --quiet --universal --no-annotate --no-header --extra dev --generate-hashes pyproject.toml \
    -o build/dev.lock
  { locked_by 'Development, tests and build tools, for every platform.' && cat build/dev.lock; } >requirements-dev.lock
  "$uv" pip compile --quiet --universal --no-annotate --no-header -c build/dev.lock pyproject.toml -o build/run.lock
  rm -rf "$folder"
  grep -v "sys_platform == 'win32'" build/run.lock | sed 's/ *;.*//' >build/pins.txt
  "$python" -m pip download --quiet --dest "$folder" --no-deps --only-binary=:all: \
    --platform any --implementation py --abi none -r build/pins.txt
  { locked_by 'What is in the .pyz. Only none-any wheels, and no markers: one bundle serves every Python and CPU.' &&
    pinned "$folder"; } >requirements.lock
}

locked_by() { printf '# %s\n# Renew with: ./build.sh lock\n' "$1"; }

# pinned FOLDER: build/pins.txt with the hash of each package's wheel in FOLDER.
pinned() {
  local pin name
  while read -r pin; do
    name=${pin//-/_}
    printf '%s \\\n    --hash=sha256:%s\n' "$pin" "$(sha256sum "$1/${name/==/-}"-py*.whl | cut -c 1-64)"
  done <build/pins.txt
}

main() {
  if [[ ${1-} == --no-install ]]; then
    install_allowed=no
    shift
  fi
  local command=${1-build}
  [[ $# == 0 ]] || shift
  case $command in
    build | lint | lock | clean | dev | release) [[ $# == 0 ]] || give_up 64 "$command takes no arguments. See ./build.sh --help" ;;
  esac
  case $command in
    build | demo | bench | lint | lock | matrix | release) "$command" "$@" ;;
    test) run_tests "$@" ;;
    dev) need_python && dev_environment && printf '%s\n' "$dev" ;;
    clean) rm -rf build dist ;;
    -h | --help | help) usage ;;
    *) give_up 64 "unknown command '$command'. See ./build.sh --help" ;;
  esac
}

main "$@"
