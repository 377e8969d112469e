"""The byte stream to the host where the host connects: by vsock, or a socket in its place.

It is one stream at a time, and the latest: who connects anew has lost the former connection, be
it that it was cut by a snapshot, and nobody told this end.
"""

from __future__ import annotations

import select
import socket

from .poller import Poller
from .port import Listener, Port

_NONE = -1


def listen(number: int) -> socket.socket:
    """Listen on a vsock port."""
    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, number))
    listener.listen()
    return listener


class AcceptingPort(Port):
    """A port that is never lost: without a connection, what is sent is dropped."""

    def __init__(self, listener: socket.socket, poller: Poller) -> None:
        super().__init__(_NONE, poller, reconnects=True)
        self._server = listener
        self._connection: socket.socket | None = None

    def start(self, listener: Listener) -> None:
        """Begin to accept and read."""
        self._listener = listener
        self._server.setblocking(False)
        self._poller.watch(self._server.fileno(), select.EPOLLIN, self._accept)

    def stop(self) -> None:
        """Let go of the listening socket, without closing it, and hang up."""
        self._poller.forget(self._server.fileno())
        self._drop()

    def _accept(self, _: int) -> None:
        while True:
            try:
                connection, _peer = self._server.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # who connected is gone again
            self._drop()
            connection.setblocking(False)
            self._connection = connection
            self._fd = connection.fileno()
            self._poller.watch(self._fd, select.EPOLLIN, self._ready)

    def _hang_up(self) -> None:
        self._drop()

    def _fail(self, error: OSError) -> None:
        del error  # whatever it is, the host connects anew
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._poller.forget(self._fd)
            self._connection.close()
            self._connection, self._fd = None, _NONE
            self.drop_output()
            self._listener.hung_up()
