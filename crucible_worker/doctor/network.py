"""The road to a peer, one step after the other: proxy, name, connection, TLS."""

import datetime as dt
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from crucible_worker.doctor.checks import Finding, failed, passed, skipped, warned
from crucible_worker.transport import CONNECT_SECONDS, proxy_of

EXPIRY_WARNING = dt.timedelta(days=14)
PORTS = {"http": 80, "https": 443}
_EXPIRED, _NOT_YET, _WRONG_NAMES = 10, 9, {62, 64}  # OpenSSL's x509_vfy.h
_OWN_CERTIFICATE = "set CRUCIBLE_CLIENT_CERT and CRUCIBLE_CLIENT_KEY"
_CA = "set CRUCIBLE_CA_FILE to the PEM file of the authority that signed it"


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody to be reached by a URL, and the setting that the URL comes from."""

    url: str
    setting: str

    @property
    def host(self) -> str:
        """The peer's name or address."""
        return urlsplit(self.url).hostname or ""

    def first_hop(self) -> tuple[str, int, str]:
        """(host, port, what it is): the peer's own, or those of the proxy in front of it."""
        proxy = proxy_of(self.url)
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else urlsplit(self.url)
        what = f"the proxy {parts.hostname}" if proxy else f"{parts.hostname}"
        return parts.hostname or "", parts.port or PORTS.get(parts.scheme, 80), what

    def mend(self) -> str:
        """What to change where the first hop cannot be reached."""
        if proxy_of(self.url):
            return f"correct {_proxy_variable(self.url, os.environ)}, or add {self.host} to NO_PROXY"
        return f"set {self.setting} to where it listens"


def proxy(peer: Peer) -> Finding:
    """Which proxy the environment puts before the peer."""
    if not proxy_of(peer.url):
        return passed(f"none for {peer.host}")
    host, port, _ = peer.first_hop()
    variable = _proxy_variable(peer.url, os.environ)
    return passed(f"{variable} leads through {host}:{port}; NO_PROXY={peer.host} would lead past it")


def name(peer: Peer) -> Finding:
    """The first hop's name has an address."""
    host, port, what = peer.first_hop()
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error)
        return failed(f"{what} has no address: {words}", f"add {host} to DNS or /etc/hosts, or {peer.mend()}")
    return passed(f"{what} is {', '.join(sorted(found))}")


def connection(peer: Peer) -> Finding:
    """The first hop accepts connections."""
    host, port, what = peer.first_hop()
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except TimeoutError:
        mend = f"open the firewall or network policy to {host}:{port}, or {peer.mend()}"
        return failed(f"{what} does not answer at port {port} within {CONNECT_SECONDS:.0f} s", mend)
    except OSError as error:
        return failed(f"{what}, port {port}: {error.strerror or error}", f"start it, or {peer.mend()}")
    return passed(f"{what} accepts connections at port {port}")


def handshake(peer: Peer, context: ssl.SSLContext) -> Finding:
    """TLS with a certificate that is trusted, in time, and for this name."""
    if urlsplit(peer.url).scheme != "https":
        return skipped(f"{peer.setting} is http: the key and all code travel in the clear")
    if proxy_of(peer.url):
        return skipped("made by way of the proxy, with the first request")
    host, port, _ = peer.first_hop()
    try:
        with (
            socket.create_connection((host, port), CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as sock,
        ):
            return _certificate(sock)
    except OSError as error:
        return failed(_tls_words(error), tls_mend(error, peer))


def _certificate(sock: ssl.SSLSocket) -> Finding:
    certificate = sock.getpeercert() or {}
    until = dt.datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), dt.UTC)
    words = f"{sock.version()}, a certificate until {until:%Y-%m-%d}"
    if until - dt.datetime.now(dt.UTC) < EXPIRY_WARNING:
        return warned(words, "have the peer's certificate renewed")
    return passed(words)


def _tls_words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS with it: {error.reason or error}"
    return f"no TLS with it: {error}"


def tls_mend(error: BaseException, peer: Peer) -> str:
    """What mends a connection by TLS that failed with `error`."""
    tls = next((link for link in _links(error) if isinstance(link, ssl.SSLError)), None)
    if isinstance(tls, ssl.SSLCertVerificationError):
        return _certificate_mend(tls.verify_code, peer)
    if tls is None:
        return f"look whether TLS is spoken there, and set {peer.setting} accordingly"
    if "CERTIFICATE_REQUIRED" in str(tls.reason) or "HANDSHAKE_FAILURE" in str(tls.reason):
        return f"{_OWN_CERTIFICATE}: it wants a certificate of this worker"
    return f"it does not speak TLS at this port: set {peer.setting} to {peer.url.replace('https:', 'http:', 1)}"


def hung_up_mend(error: BaseException) -> str:
    """What mends a connection that the peer closed once TLS stood, or an empty text if it did not.

    In TLS 1.3 a client is done before the server has looked at its certificate (RFC 8446, 4.4.2.4), and the alert that
    tells so may be lost when the connection is reset.
    """
    if any(isinstance(link, ssl.SSLEOFError | ConnectionError) for link in _links(error)):
        return f"{_OWN_CERTIFICATE} if it wants a certificate of this worker, or read its log: it closed the connection"
    return ""


def _certificate_mend(code: int, peer: Peer) -> str:
    if code == _EXPIRED:
        return "have the peer's certificate renewed; if it is not expired, set this host's clock"
    if code == _NOT_YET:
        return "set this host's clock: timedatectl set-ntp true"
    if code in _WRONG_NAMES:
        kind = "an address" if _is_address(peer.host) else "a name"
        return f"set {peer.setting} to {kind} that the certificate is for, or have one made for {peer.host}"
    return _CA


def _links(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it; urllib keeps some of that in `reason`."""
    while error is not None:
        yield error
        reason = getattr(error, "reason", None)
        error = reason if isinstance(reason, BaseException) else error.__cause__


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _proxy_variable(url: str, environ: Mapping[str, str]) -> str:
    variable = f"{urlsplit(url).scheme}_proxy"
    return variable if variable in environ else variable.upper()
