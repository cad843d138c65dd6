"""What runs first in the .pyz, as its `__main__.py`: it asks a health check's question, or goes on to `unpack`.

That question comes every few seconds: it is asked without unpacking, and with hardly an import. Pythons that are too
old for the rest must understand this file, to be told so: no syntax newer than 3.6.
"""

import os
import sys

TYPE_CHECKING = False  # typing's own takes time that a health check does not have
if TYPE_CHECKING:
    from collections.abc import Mapping

if sys.version_info < (3, 11):  # noqa: UP036 - the interpreter is the host's, not the one pip chose
    sys.stderr.write(
        "crucible-worker needs Python 3.11 or newer, and this is {}.{}. Start it with a newer python3.\n".format(
            *sys.version_info[:2]
        )
    )
    sys.exit(64)

_ADDRESS = "0.0.0.0:8082"
_SECONDS = 3.0


def main() -> None:
    """Answer a health check, or run the command line; ends the process."""
    code = quick_health(sys.argv[1:], os.environ)
    if code is None:
        import _unpack  # type: ignore[import-not-found]  # unpack.py, in the archive

        _unpack.main()
    sys.exit(code)


def quick_health(argv: list[str], environ: "Mapping[str, str]") -> int | None:
    """The exit code of `healthcheck`, having printed its line; None where only the command itself can tell.

    That is so with TLS, a configuration file, any flag but `--address HOST:PORT`, and for a worker that is unhealthy.
    """
    if argv[:1] != ["healthcheck"] or environ.get("CRUCIBLE_CONFIG") or environ.get("CRUCIBLE_HEALTH_CERT"):
        return None
    address = environ.get("CRUCIBLE_HEALTH_ADDRESS") or _ADDRESS
    if argv[1:2] == ["--address"] and len(argv) == 3:
        address = argv[2]
    elif argv[1:]:
        return None
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536 or not host.replace(".", "").isdecimal():
        return None
    try:
        status = _status("127.0.0.1" if host == "0.0.0.0" else host, int(port))
    except OSError as error:
        print(f"unreachable: {address}: {error}")
        return 1
    if not status.startswith((b"HTTP/1.0 200 ", b"HTTP/1.1 200 ")):
        return None
    print("healthy")
    return 0


def _status(host: str, port: int) -> bytes:
    """The first bytes of what GET /health answers there. Raises OSError."""
    # The public module brings selectors and enum, which take half as long again as the interpreter itself.
    import _socket

    connection = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        connection.settimeout(_SECONDS)
        connection.connect((host, port))
        connection.send(f"GET /health HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())
        return connection.recv(4096)
    finally:
        connection.close()


if __name__ == "__main__":
    main()
