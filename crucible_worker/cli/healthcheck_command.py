"""`healthcheck`: asks the worker on this host whether it is healthy. Imports little: it runs every few seconds."""

import argparse
import http.client
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from crucible_worker import readers
from crucible_worker.cli import options
from crucible_worker.errors import ExitCode, ExitError
from crucible_worker.settings import Settings, load

if TYPE_CHECKING:
    import ssl

EXAMPLE = """Exit codes: 0 healthy, 1 unhealthy or unreachable, 64 usage.

Example:
  crucible-worker.pyz healthcheck --address 127.0.0.1:8082"""

_WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_MAX_BODY_BYTES = 65_536


def arguments(parser: argparse.ArgumentParser) -> None:
    """Where to ask, and how long to wait."""
    parser.add_argument(
        "--address",
        type=options.flag(readers.address),
        metavar="HOST:PORT",
        help="where the worker listens (CRUCIBLE_HEALTH_ADDRESS)",
    )
    parser.add_argument("--timeout", metavar="S", type=float, default=3.0, help="seconds to wait (3)")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print one line; 0 for a healthy worker, 1 for any other."""
    if not 0 < args.timeout <= 3600:
        raise ExitError(ExitCode.USAGE, "--timeout must be a number of seconds above 0.")
    settings = _settings(args.address, environ)
    try:
        status, body = _get(settings, args.timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"unreachable: {settings.health_address}: {error or type(error).__name__}")
        return ExitCode.FAILED
    print("healthy" if status == 200 else f"unhealthy: {_reasons(status, body)}")
    return ExitCode.OK if status == 200 else ExitCode.FAILED


def _settings(flag: str | None, environ: Mapping[str, str]) -> Settings:
    """How the worker serves, by the worker's own rules. Its other settings, right or wrong, are not asked for."""
    flags = {} if flag is None else {"health_address": flag}
    ours = {name: value for name, value in environ.items() if name.startswith("CRUCIBLE_HEALTH_")}
    config = environ.get("CRUCIBLE_CONFIG")
    return load(flags, ours, _toml(config) if config else {}).settings


def _toml(path: str) -> Mapping[str, object]:
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExitError(ExitCode.USAGE, f"CRUCIBLE_CONFIG {path} cannot be read: {error}.") from None
    return {name: value for name, value in table.items() if name.startswith("health_")}


def _get(settings: Settings, timeout: float) -> tuple[int, bytes]:
    host, _, port = settings.health_address.rpartition(":")
    host = host.strip("[]")
    target = (_WILDCARDS.get(host, host), int(port))
    connection = (
        http.client.HTTPSConnection(*target, timeout=timeout, context=_trusting(settings.health_cert))
        if settings.health_cert
        else http.client.HTTPConnection(*target, timeout=timeout)
    )
    token = settings.health_token.reveal()
    try:
        connection.request("GET", "/health", headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read(_MAX_BODY_BYTES)
    finally:
        connection.close()


def _trusting(cert: str) -> "ssl.SSLContext":
    """Trusts this certificate and no other, whatever name it is for: the worker is asked on its own host."""
    import ssl

    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    context.verify_flags = (context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN) & ~ssl.VERIFY_X509_STRICT
    return context


def _reasons(status: int, body: bytes) -> str:
    import json

    try:
        reasons = json.loads(body)["reasons"]
        return "; ".join(str(reason) for reason in reasons).encode("unicode_escape").decode() or f"HTTP {status}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"HTTP {status}"
