"""Who may read port 8082: TLS, and a token. Probes of /live, /ready and /health need none, and learn less."""

import base64
import binascii
import hmac
import ssl
from collections.abc import Callable

from crucible_worker.errors import ExitCode, ExitError

OPEN_PATHS = frozenset({"/live", "/ready", "/health"})
CHALLENGE = 'Bearer, Basic realm="crucible-worker", charset="UTF-8"'


class Access:
    """A token that a reader must show; where there is none, everybody may read."""

    def __init__(self, token: Callable[[], str] = str) -> None:
        self._token = token

    def admits(self, authorization: str) -> bool:
        """Whether an Authorization header carries the token: as Bearer, or for browsers as anybody's password."""
        token = self._token()
        scheme, _, given = authorization.strip().partition(" ")
        if scheme.lower() == "basic":
            given = _password(given)
        elif scheme.lower() != "bearer":
            given = ""
        return not token or hmac.compare_digest(token.encode(), given.strip().encode("utf-8", "replace"))


def _password(encoded: str) -> str:
    try:
        return base64.b64decode(encoded.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


class ServerTls:
    """The server's side of TLS. Its certificate may be read again while it serves."""

    def __init__(self, cert: str, key: str) -> None:
        """Files in PEM; the key may stand in the certificate's. Raises ExitError (64) where they cannot be used."""
        self._files = (cert, key or None)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.reload()

    def reload(self) -> None:
        """Read the files again, for connections to come. Raises ExitError (64)."""
        try:
            # Without a password at hand, an encrypted key would be asked for on the terminal.
            self.context.load_cert_chain(*self._files, password=lambda: b"")
        except (OSError, ValueError) as error:
            words = getattr(error, "strerror", None) or error
            raise ExitError(
                ExitCode.USAGE, f"CRUCIBLE_HEALTH_CERT and CRUCIBLE_HEALTH_KEY cannot be used: {words}."
            ) from None
