"""The other end of NOTIFY_SOCKET: what systemd would hear."""

import socket

from scripted_server import PATIENCE


class ServiceManager:
    """Listens at a path, or at @NAME in the abstract namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.datagrams: list[list[str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)

    def _take(self, timeout: float) -> list[str]:
        self._socket.settimeout(timeout)
        self.datagrams.append(self._socket.recv(65_536).decode().split("\n"))
        return self.datagrams[-1]

    def heard(self) -> list[list[str]]:
        """The datagrams that have come since this was asked last, each as its lines."""
        before = len(self.datagrams)
        try:
            while True:
                self._take(0)
        except BlockingIOError:
            return self.datagrams[before:]

    def wait(self, *lines: str) -> list[str]:
        """The next datagram that has a line which begins with each of these."""
        while True:
            datagram = self._take(PATIENCE)
            if all(any(told.startswith(line) for told in datagram) for line in lines):
                return datagram

    def close(self) -> None:
        self._socket.close()
