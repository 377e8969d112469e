"""A client that does what no client should."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Any

import msgpack

from arrakis_rpc.framing import encode_frame


class RawClient:
    """A connection without manners."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._socket.settimeout(60)

    def send(self, data: bytes) -> None:
        """Send bytes, as far as the daemon takes them."""
        self._socket.sendall(data)

    def call(self, number: int, method: str, params: object = None) -> None:
        """Send a well-formed call."""
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params or {}}
        self.send(encode_frame(message))

    def hello(self) -> None:
        """Greet as the protocol wants it."""
        self.call(1, "system.hello", {"versions": [1], "client": "test"})
        assert self.answer()["result"]["version"] == 1

    def answer(self) -> Any:
        """Receive one frame."""
        (size,) = struct.unpack(">I", self._exactly(4))
        return msgpack.unpackb(self._exactly(size))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:  # MSG_WAITALL waits for nothing on a socket with a timeout
            piece = self._socket.recv(size - len(data))
            assert piece, "the daemon has hung up"
            data += piece
        return data

    def is_closed(self) -> bool:
        """Wait until the daemon hangs up; whether it did."""
        try:
            return self._socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
