"""`completion`: what makes bash and zsh complete every command and flag, made from the parsers themselves."""

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence

from crucible_worker.cli.main import COMMANDS, load
from crucible_worker.errors import ExitCode
from crucible_worker.settings import Settings

EXAMPLE = """Examples:
  source <(crucible-worker.pyz completion bash)
  crucible-worker.pyz completion bash >/etc/bash_completion.d/crucible-worker
  crucible-worker.pyz completion zsh >"${fpath[1]}/_crucible-worker"

Exit codes: 0 printed, 64 usage."""

_PROGRAMS = "crucible-worker crucible-worker.pyz"
_FILES = frozenset({"FILE", "PATH"})


def arguments(parser: argparse.ArgumentParser) -> None:
    """For which shell."""
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell that is to read it")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the script."""
    del environ
    parsers = {name: load(name)[1] for name in COMMANDS}
    print(bash(parsers) if args.shell == "bash" else zsh(parsers), end="")
    return ExitCode.OK


def _flags(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (action for action in parser._actions if action.option_strings)  # noqa: SLF001 - there is no public list


def _positionals(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (action for action in parser._actions if not action.option_strings)  # noqa: SLF001 - as above


def _every(parsers: Mapping[str, argparse.ArgumentParser]) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command by its words, and each of its subcommands: `image`, `image build`."""
    for name, parser in parsers.items():
        yield name, parser
        for action in _positionals(parser):
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - how argparse spells it
                yield from _every({f"{name} {word}": inner for word, inner in action.choices.items()})


def _nested(parsers: Mapping[str, argparse.ArgumentParser]) -> list[str]:
    """The commands that have subcommands."""
    return [name for name in parsers if any(inner.startswith(f"{name} ") for inner, _ in _every(parsers))]


def _takes_file(action: argparse.Action) -> bool:
    return action.metavar in _FILES or action.dest.endswith("_file") or "PEM" in (action.help or "")


def _choices(action: argparse.Action) -> Sequence[str]:
    settings = Settings()
    known = {"engine": settings.engines, "language": settings.languages}.get(action.dest, ())
    return [str(choice) for choice in action.choices or known]


def bash(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """The script for bash 3.2 and later."""
    after_flag, elsewhere = [], []
    for name, parser in _every(parsers):
        flags = " ".join(option for action in _flags(parser) for option in action.option_strings)
        positionals = list(_positionals(parser))
        offered = " ".join(choice for action in positionals for choice in _choices(action))
        files = "yes" if any(_takes_file(action) for action in positionals) else ""
        elsewhere.append(
            f"    {_pattern(name)}) flags={shlex.quote(flags)} words={shlex.quote(offered)} files={files} ;;"
        )
        for action in _flags(parser):
            if action.nargs != 0:
                patterns = "|".join(_pattern(f"{name} {option}") for option in action.option_strings)
                values = "files=yes" if _takes_file(action) else f"words={shlex.quote(' '.join(_choices(action)))}"
                after_flag.append(f"    {patterns}) {values} ;;")
    return _BASH.format(
        commands=" ".join(COMMANDS), nested="|".join(_nested(parsers)), programs=_PROGRAMS,
        after_flag="\n".join(after_flag), elsewhere="\n".join(elsewhere),
    )  # fmt: skip


def _pattern(name: str) -> str:
    return f"'{name}'"


_BASH = """# Completion of crucible-worker for bash.
_crucible_worker() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} command=${{COMP_WORDS[1]}}
  local flags= words= files=
  COMPREPLY=()
  if [[ $COMP_CWORD == 1 && $current != -* ]]; then
    COMPREPLY=($(compgen -W '{commands} --help --version' -- "$current"))
    return
  fi
  [[ $command == -* ]] && command=run
  case $command in
    {nested}) [[ $COMP_CWORD -gt 2 ]] && command="$command ${{COMP_WORDS[2]}}" ;;
  esac
  case "$command $previous" in
{after_flag}
    *)
      case $command in
{elsewhere}
      esac
      if [[ $current == -* ]]; then words=$flags files=; fi
      ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [[ $files ]]; then
    local IFS=$'\\n'
    COMPREPLY+=($(compgen -f -- "$current"))
  fi
}}
complete -o filenames -F _crucible_worker {programs}
"""


def zsh(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """The script for zsh: to be sourced, or to be found as _crucible-worker in fpath."""
    commands = " ".join(shlex.quote(f"{name}:{_plain(summary)}") for name, summary in COMMANDS.items())
    cases = []
    for name, parser in _every(parsers):
        specs = [_spec(action) for action in _flags(parser)]
        specs += [_positional(action) for action in _positionals(parser)]
        cases.append(f"    {_pattern(name)}) _arguments -s {' '.join(shlex.quote(spec) for spec in specs)} ;;")
    return _ZSH.format(commands=commands, nested="|".join(_nested(parsers)), programs=_PROGRAMS, cases="\n".join(cases))


def _spec(action: argparse.Action) -> str:
    repeated = "*" if isinstance(action, argparse._AppendAction) else ""  # noqa: SLF001 - how argparse spells it
    value = "" if action.nargs == 0 else f":{_plain(str(action.metavar or action.dest))}:{_values(action)}"
    return f"{repeated}{action.option_strings[-1]}[{_plain(_help(action))}]{value}"


def _positional(action: argparse.Action) -> str:
    return f"*:{_plain(str(action.metavar or action.dest))}:{_values(action)}"


def _values(action: argparse.Action) -> str:
    if choices := _choices(action):
        return f"({' '.join(choices)})"
    return "_files" if _takes_file(action) else ""


def _help(action: argparse.Action) -> str:
    return (action.help or "") % vars(action)


def _plain(text: str) -> str:
    """A text without what `_arguments` would read as its own."""
    return "".join(" " if character in "[]:\\" else character for character in text)


_ZSH = """#compdef {programs}
# Completion of crucible-worker for zsh.
_crucible_worker() {{
  local command=$words[2]
  local -a commands=({commands})
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  shift words
  (( CURRENT-- ))
  if [[ $command == ({nested}) ]] && (( CURRENT > 2 )); then
    command="$command $words[2]"
    shift words
    (( CURRENT-- ))
  fi
  case $command in
{cases}
  esac
}}
if [[ $funcstack[1] == _crucible-worker ]]; then
  _crucible_worker "$@"
else
  compdef _crucible_worker {programs}
fi
"""
