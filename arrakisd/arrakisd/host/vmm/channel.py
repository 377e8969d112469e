"""The byte stream to a guest agent, and how it is kept quiet during a snapshot."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

_DRAIN_POLL = 0.001
_DRAIN_DEADLINE = 0.25


class Channel(trio.abc.Stream):
    """A connected socket whose traffic can be held back at once.

    trio's own streams cannot: a task that waits in ``receive_some`` takes what comes.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._open = trio.Event()
        self._open.set()
        self._has_sent = False

    @property
    def has_reached(self) -> bool:
        """Whether anything that was sent may have reached the guest."""
        return self._has_sent

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything, as far as the channel is not quiet."""
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            await self._open.wait()
            try:
                rest = rest[self._socket.send(rest) :]
                self._has_sent = True
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        await trio.lowlevel.wait_writable(self._socket)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive what there is, as far as the channel is not quiet."""
        await trio.lowlevel.checkpoint()
        while True:
            await self._open.wait()
            try:
                return self._socket.recv(max_bytes or 65536)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except OSError as error:
                raise trio.BrokenResourceError from error

    def hang_up(self) -> None:
        """Close this end at once; who reads or writes finds it closed or broken."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def aclose(self) -> None:
        """Close this end. A duplicate of the socket stays usable."""
        self.hang_up()
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """Let no byte pass for the length of a block.

        The block begins when the VMM has taken what was under way, or has left it in the
        socket for so long that it has no buffer of the guest's to put it into.
        """
        self._open = trio.Event()
        try:
            with trio.move_on_after(_DRAIN_DEADLINE):
                while self._unsent():  # noqa: ASYNC110 -- the kernel tells nobody
                    await trio.sleep(_DRAIN_POLL)
            yield
        finally:
            self._open.set()

    def _unsent(self) -> int:
        if self._socket.fileno() < 0:
            return 0
        answer = fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4))
        return int(struct.unpack("i", answer)[0])
