"""`image build` and `image check`: the sandbox image, without a registry."""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from crucible_worker import __version__, settings
from crucible_worker.engines import image, worker_image
from crucible_worker.errors import ExitCode, ExitError
from crucible_worker.model import Language

EXAMPLE = """Examples:
  crucible-worker.pyz image build
  crucible-worker.pyz image build --output sandbox.tar   (then, elsewhere: docker load -i sandbox.tar)
  crucible-worker.pyz image check"""

_BUILD_HELP = "make a sandbox image from a Python of this host and load it, or write it to a file"
_BUILD_EXAMPLE = """The same Python gives the same image, byte for byte. It holds that Python with its standard library
and the shared libraries it needs; no packages, no shell.

Examples:
  crucible-worker.pyz image build
  crucible-worker.pyz image build --python /usr/bin/python3 --tag crucible-sandbox:debian
  crucible-worker.pyz image build --output sandbox.tar
  crucible-worker.pyz image build --worker --output worker.tar

Exit codes: 0 done, 1 a file cannot be read or written, 64 usage, 69 no Docker Engine."""

_CHECK_HELP = "look whether the sandbox images are there and fit for use"
_CHECK_EXAMPLE = """Without --image, all images of the settings are looked at.

Examples:
  crucible-worker.pyz image check
  crucible-worker.pyz image check --image crucible-sandbox:python --json

Exit codes: 0 all fit, 1 one is missing or unfit, 64 usage, 69 no Docker Engine."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """`build` and `check`, each with its flags."""
    parser.epilog = f"{EXAMPLE}\n\n'image build --help' and 'image check --help' show the options and exit codes."
    actions = parser.add_subparsers(dest="action", required=True, metavar="build|check")
    build = _action(actions, "build", _BUILD_HELP, _BUILD_EXAMPLE)
    build.add_argument("--tag", metavar="NAME", help="the image's name (default: the python image of the settings)")
    build.add_argument("--python", metavar="PATH", help="the Python to put into it (default: the one that runs this)")
    build.add_argument(
        "--worker", action="store_true", help="make an image of this worker instead, named crucible-worker:VERSION"
    )
    build.add_argument("--output", metavar="FILE", help="write it here for 'docker load'; needs no Docker Engine")
    check = _action(actions, "check", _CHECK_HELP, _CHECK_EXAMPLE)
    check.add_argument("--image", metavar="NAME", action="append", help="look at this one; may be repeated")


def _action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str, epilog: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--docker-host", metavar="URL", help="the Docker Engine (default: DOCKER_HOST, or its socket)")
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    return parser


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do what was asked. Raises ExitError with the codes that the help lists."""
    flags = {"docker_host": args.docker_host} if args.docker_host is not None else {}
    configured = settings.load(flags, environ, {}).settings
    if args.action == "check":
        images = {language.image for language in configured.languages.values()}
        return _check(args.image or sorted(images), configured.docker_host, as_json=args.json)
    python = configured.languages.get("python", Language("crucible-sandbox:python"))
    usual = f"crucible-worker:{__version__}" if args.worker else python.image
    tag = args.tag if args.tag is not None else usual
    built = _build(args, tag, configured.docker_host)
    if args.json:
        print(json.dumps(dataclasses.asdict(built)))
    else:
        where = f"written to {args.output}" if args.output else "loaded"
        print(f"{built.reference}: Python {built.python}, {_megabytes(built.size)}, {where}")
        print(f"id {built.image_id}")
    return ExitCode.OK


def _build(args: argparse.Namespace, tag: str, docker_host: str) -> image.Built:
    python = args.python or image.default_python()
    worker = worker_image.running_archive() if args.worker else None
    if args.output:
        return image.write_file(Path(args.output), tag, python, worker)
    from crucible_worker.engines.image_store import ImageStore

    image.reference(tag)
    try:
        with ImageStore(docker_host) as store, tempfile.TemporaryFile() as archive:
            built = image.write(archive, tag, python, worker)
            return dataclasses.replace(built, image_id=store.load(archive, built.reference))
    except OSError as error:
        hint = "point TMPDIR to a folder with 150 MB, or use --output"
        raise ExitError(ExitCode.FAILED, f"no room for the image: {error}; {hint}.") from error


def _check(references: list[str], docker_host: str, *, as_json: bool) -> int:
    from crucible_worker.engines.image_store import ImageStore

    reports = []
    with ImageStore(docker_host) as store:
        for reference in references:
            found = store.look(image.reference(reference))
            problems = ["it is not on this host; 'image build' makes it"] if found is None else found.problems()
            reports.append(
                {
                    "image": reference,
                    "fit": not problems,
                    "problems": problems,
                    "notes": found.notes() if found else [],
                    "image_id": found.image_id if found else None,
                    "size": found.size if found else None,
                    "platform": found.platform if found else None,
                }
            )
    if as_json:
        print(json.dumps(reports))
    else:
        for report in reports:
            print(_described(report))
    return ExitCode.OK if all(report["fit"] for report in reports) else ExitCode.FAILED


def _described(report: Mapping[str, object]) -> str:
    lines = [f"{report['image']}: {'fit' if report['fit'] else 'NOT FIT'}"]
    if isinstance(report["size"], int):
        lines.append(f"  {report['image_id']}, {report['platform']}, {_megabytes(report['size'])}")
    for kind in ("problems", "notes"):
        said = report[kind]
        lines += [f"  {kind[:-1]}: {text}" for text in said] if isinstance(said, list) else []
    return "\n".join(lines)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
