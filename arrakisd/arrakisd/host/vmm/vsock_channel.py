"""The byte stream to a guest agent that listens on vsock, through the VMM's Unix socket.

cloud-hypervisor and Firecracker both take ``CONNECT <port>`` there, answer ``OK <number>``
when the guest has accepted, and close the connection when nobody listens in the guest.

They number their ends of connections anew when they wake a guest, which may still have open what
it had with the same number when it was saved. Then it refuses, or nobody answers at all (before
cloud-hypervisor 52, cloud-hypervisor/cloud-hypervisor#7263; before Firecracker 1.15,
firecracker-microvm/firecracker#5688). The next number is free. It is tried here, where no call has
begun that would be lost.
"""

from __future__ import annotations

import math
import socket
from pathlib import Path

import trio

from .channel import Channel
from .http_client import checked_socket_path

AGENT_PORT = 5000
# What the agent listens on when its kernel was started with this.
AGENT_ARGUMENT = f"arrakis.vsock={AGENT_PORT}"

_LONGEST_GREETING = 32
_GREETING_DEADLINE = 3.0
_TRIES = 3


class VsockChannel(Channel):
    """Connects with the first use: whoever opens a channel does not wait for the guest."""

    def __init__(self, path: str) -> None:
        super().__init__(_new_socket())
        self._path = path
        self._connecting = trio.Lock()
        self._connected = False

    @property
    def has_reached(self) -> bool:
        """Whether anything that was sent may have reached the guest."""
        return self._connected

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
            # The last has all the time that the session has: a guest may just be slow.
            for limit in (*[_GREETING_DEADLINE] * (_TRIES - 1), math.inf):
                greeting = await self._ask(limit)
                if greeting.startswith(b"OK ") and greeting.endswith(b"\n"):
                    self._connected = True
                    return
                self._renew()
            raise trio.BrokenResourceError("nobody listens in the guest")

    async def _ask(self, limit: float) -> bytes:
        """Ask for a connection; give the line that answers, or what came of it in time."""
        try:
            self._socket.connect(self._path)
        except OSError as error:
            raise trio.BrokenResourceError from error
        greeting = b""
        with trio.move_on_after(limit):
            await super().send_all(f"CONNECT {AGENT_PORT}\n".encode())
            while not greeting.endswith(b"\n") and len(greeting) < _LONGEST_GREETING:
                # One byte at a time: what follows is the agent's.
                byte = await super().receive_some(1)
                if not byte:
                    break
                greeting += byte
        return greeting

    def _renew(self) -> None:
        """Get another socket to ask again, unless somebody has hung up meanwhile."""
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError
        self._socket.close()
        self._socket = _new_socket()


def _new_socket() -> socket.socket:
    end = socket.socket(socket.AF_UNIX)
    end.setblocking(False)
    return end


def open_channel(path: Path) -> Channel:
    """Open a channel to the agent behind a VMM's vsock socket."""
    return VsockChannel(checked_socket_path(path))
