"""Completion, asked of real shells: bash's own machinery without a terminal, zsh's in one."""

import os
import shutil
import subprocess
import sys

import pytest
from precondition import unavailable

from crucible_worker.cli.main import COMMANDS


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    found = {}
    for shell in ("bash", "zsh"):
        found[shell] = tmp_path_factory.mktemp(shell) / f"completion.{shell}"
        command = [sys.executable, "-m", "crucible_worker", "completion", shell]
        found[shell].write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def offered(script, folder, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    ask = f"""
        source {script}
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _crucible_worker
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    command = ["bash", "--norc", "-uc", ask, "bash", "crucible-worker.pyz", *words]
    told = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=30)
    assert told.stderr == ""
    return set(told.stdout.split("\n")) - {""}


def test_bash_completes_commands_flags_values_and_files(scripts, tmp_path):
    for name in ("solution one.py", "secret.key"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()

    def ask(*words: str) -> set[str]:
        return offered(scripts["bash"], tmp_path, *words)

    everything = {"solution one.py", "secret.key", "folder"}
    assert ask("") == {*COMMANDS, "--help", "--version"}
    assert ask("ex") == {"exec"}
    assert ask("exec", "--js") == {"--json"}
    assert ask("exec", "--engine", "") == {"docker", "gvisor"}
    assert ask("exec", "--engine", "g") == {"gvisor"}
    assert ask("exec", "--json", "") == everything
    assert ask("exec", "sol") == {"solution one.py"}
    assert ask("exec", "--timeout", "") == set()
    assert ask("submit", "--api-key-file", "se") == {"secret.key"}
    assert ask("image", "") == {"build", "check"}
    assert ask("image", "bu") == {"build"}
    assert ask("image", "build", "--out") == {"--output"}
    assert ask("image", "build", "--output", "") == everything
    assert ask("journal", "re") == {"retry"}
    assert ask("completion", "") == {"bash", "zsh"}
    assert "--queue-url" in ask("--queue")
    assert ask("nonsense", "") == set()


def test_every_flag_of_every_command_is_offered(scripts):
    for command in COMMANDS:
        flags = offered(scripts["bash"], "/", command, "-")
        assert {"-h", "--help"} <= flags


ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
answer() {
  zpty -w -n shell "$1"
  local all= part= n
  for n in {1..60}; do
    if zpty -r -t shell part; then all+=$part; [[ $all == *$2* ]] && break; else sleep 0.05; fi
  done
  print -r -- "$all"
}
setup='PS1=; unsetopt beep; autoload -Uz compinit; compinit -u -D; source $SCRIPT; print READ""Y'
answer $setup$'\n' READY >/dev/null
for line expected in \
  'crucible-worker ex' 'exec' 'crucible-worker.pyz exec --engine g' 'gvisor' 'crucible-worker image bu' 'build' \
  'crucible-worker image build --outp' '--output' 'crucible-worker exec solu' 'solution.py'
do
  answer "$line"$'\t' $expected | grep -qF -- $expected && print "ok $expected" || print "missing $expected"
  answer $'\x15print READ""Y\n' READY >/dev/null
done
zpty -d shell
"""


def test_zsh_completes_in_a_terminal(scripts, tmp_path):
    if shutil.which("zsh") is None:
        unavailable("zsh is missing")
    (tmp_path / "solution.py").touch()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SCRIPT": str(scripts["zsh"]), "TERM": "vt100"}
    told = subprocess.run(
        ["zsh", "-f", "-c", ZSH], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
    )
    assert told.stdout.splitlines() == ["ok exec", "ok gvisor", "ok build", "ok --output", "ok solution.py"], told
