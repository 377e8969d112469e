"""The byte stream to a guest agent that listens on vsock, through the VMM's Unix socket.

cloud-hypervisor and Firecracker both take ``CONNECT <port>`` there, answer ``OK <number>``
when the guest has accepted, and close the connection when nobody listens in the guest.
"""

from __future__ import annotations

import socket
from pathlib import Path

import trio

from .channel import Channel
from .http_client import checked_socket_path

AGENT_PORT = 5000
# What the agent listens on when its kernel was started with this.
AGENT_ARGUMENT = f"arrakis.vsock={AGENT_PORT}"

_LONGEST_GREETING = 32


class VsockChannel(Channel):
    """Connects with the first use: whoever opens a channel does not wait for the guest."""

    def __init__(self, path: str) -> None:
        super().__init__(socket.socket(socket.AF_UNIX))
        self._path = path
        self._connecting = trio.Lock()
        self._connected = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything, as far as the channel is not quiet."""
        await self._connect()
        await super().send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive what there is, as far as the channel is not quiet."""
        await self._connect()
        return await super().receive_some(max_bytes)

    async def _connect(self) -> None:
        async with self._connecting:
            if self._connected:
                return
            try:
                self._socket.connect(self._path)
            except OSError as error:
                raise trio.BrokenResourceError from error
            await super().send_all(f"CONNECT {AGENT_PORT}\n".encode())
            greeting = b""
            while not greeting.endswith(b"\n"):
                # One byte at a time: what follows is the agent's.
                byte = await super().receive_some(1)
                greeting += byte
                if not byte or len(greeting) > _LONGEST_GREETING:
                    raise trio.BrokenResourceError("nobody listens in the guest")
            if not greeting.startswith(b"OK "):
                raise trio.BrokenResourceError("the VMM does not connect to the guest")
            self._connected = True


def open_channel(path: Path) -> Channel:
    """Open a channel to the agent behind a VMM's vsock socket."""
    return VsockChannel(checked_socket_path(path))
