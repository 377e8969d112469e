"""Moving bytes between the pipes of a command and the channels of its call.

Output is moved by callbacks and not by tasks: two tasks for each short command would cost
more than the command's own pipes do.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable

from .call import Call
from .poller import Poller, wake

_CHUNKS_PER_TURN = 4
_DISCARD_SIZE = 64 * 1024
_DISCARD_PAUSE = 0.02


class OutputPump:
    """Sends what can be read from a descriptor on a channel, as fast as the caller takes it.

    While the caller takes nothing, nothing is read, and the command waits in its write.
    ``far_end`` is the other end of the pipe, held open until the command has ended: there
    is nothing to be done when it just closes its output, and being woken up for that would
    cost more than all the rest.
    """

    def __init__(
        self, fd: int, far_end: int, call: Call, channel: str, poller: Poller, *, capacity: int
    ) -> None:
        self._fd = fd
        self._far_end: int | None = far_end
        self._call = call
        self._channel = channel
        self._poller = poller
        self._capacity = capacity
        self._on_end: Callable[[], None]
        self._blocked = False
        self._ended = False
        self._left: int | None = None

    def start(self, on_end: Callable[[], None]) -> None:
        """Begin; ``on_end`` is called when all there was to send is sent."""
        self._on_end = on_end
        os.set_blocking(self._fd, False)
        self._poller.watch(self._fd, select.EPOLLIN, self._ready)

    def finish(self) -> None:
        """The command has ended: send what it left in the pipe, and no more.

        Others may hold the pipe open and go on writing. They are let: their output is read
        and thrown away, for the signal of a broken pipe would kill them.
        """
        if not self._ended:
            self._close_far_end()
            self._left = self._capacity
            self._pump()

    def close(self) -> None:
        """Stop at once, whatever is left in the pipe."""
        if not self._ended:
            self._ended = True
            self._poller.forget(self._fd)
            os.close(self._fd)
            self._close_far_end()

    def _ready(self, _events: int) -> None:
        self._pump()

    def _pump(self) -> None:
        for _ in range(_CHUNKS_PER_TURN):
            if self._ended or self._blocked:
                return
            room = self._call.room(self._channel)
            if not room:
                self._blocked = True
                self._call.when_room(self._channel, self._unblock)
                return
            if not self._move(room if self._left is None else min(room, self._left)):
                return
        asyncio.get_running_loop().call_soon(self._pump)

    def _move(self, size: int) -> bool:
        """Move up to ``size`` bytes; tell whether there may be more."""
        try:
            data = os.read(self._fd, size)
        except BlockingIOError:
            if self._left is not None:
                self._end(discard=True)
            return False
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if not data:
            self._end(discard=False)
            return False
        self._call.send_nowait(self._channel, data)
        if self._left is not None:
            self._left -= len(data)
            if not self._left:
                self._end(discard=True)
                return False
        return True

    def _unblock(self) -> None:
        self._blocked = False
        self._pump()

    def _close_far_end(self) -> None:
        if self._far_end is not None:
            os.close(self._far_end)
            self._far_end = None

    def _end(self, *, discard: bool) -> None:
        self._ended = True
        self._close_far_end()
        self._poller.forget(self._fd)
        if discard:
            _Discard(self._fd, self._poller)
        else:
            os.close(self._fd)
        self._on_end()


class _Discard:
    """Reads from a descriptor until its end, at a rate that costs next to nothing."""

    def __init__(self, fd: int, poller: Poller) -> None:
        self._fd = fd
        self._poller = poller
        self._loop = asyncio.get_running_loop()
        self._pausing = False
        poller.watch(fd, select.EPOLLIN, self._ready)

    def _ready(self, _events: int) -> None:
        if not self._pausing:
            self._read()

    def _read(self) -> None:
        self._pausing = False
        try:
            data = os.read(self._fd, _DISCARD_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._pausing = True
            self._loop.call_later(_DISCARD_PAUSE, self._read)
        else:
            self._poller.forget(self._fd)
            os.close(self._fd)


class InputPump:
    """Writes a channel to a descriptor, as fast as the command reads.

    A command may close its standard input, or never read it: the rest is then thrown away,
    but the caller is still given credit for it.
    """

    def __init__(self, fd: int, call: Call, channel: str, poller: Poller, *, last: bytes) -> None:
        self._fd = fd
        self._call = call
        self._channel = channel
        self._poller = poller
        self._last = last
        self._broken = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        os.set_blocking(fd, False)
        poller.watch(fd, select.EPOLLOUT, self._ready)

    async def run(self) -> None:
        """Write until the channel ends, then ``last``, and close the descriptor."""
        while (data := await self._call.receive(self._channel)) is not None:
            await self._write(data)
            self._call.consumed(self._channel, len(data))
        await self._write(self._last)
        self.close()

    def close(self) -> None:
        """Close the descriptor, if that is not done yet."""
        if not self._closed:
            self._closed = True
            self._poller.forget(self._fd)
            os.close(self._fd)

    async def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest and not self._broken:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            except OSError:  # EPIPE, or EIO of a terminal
                self._broken = True

    def _ready(self, _events: int) -> None:
        wake(self._waiter)
