"""The byte stream to the host: a virtio-serial port, or a socket in its place.

What Linux's virtio_console does, and this module relies on:

* a read gives at most one 4096-byte buffer, but ``readv`` goes on with the next part of
  its vector while the buffers are full, so many are fetched by one system call;
* without a connected host end a read gives 0 bytes, as at an end of file, but only until
  the host connects again; a write then would block;
* a write takes up to 32 KiB, and waits for room in the queue to the host.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
from collections import deque
from collections.abc import Callable
from typing import Protocol

from .poller import Poller

_BUFFER = 4096
_BUFFERS = 32
_READS_PER_TURN = 8
_ROOM_BELOW = 256 * 1024
_STOP_READING_ABOVE = 1024 * 1024


class PortLostError(Exception):
    """The port is gone for good; the agent must be started anew."""


class Listener(Protocol):
    """Who is told what happens on a port."""

    def data_received(self, data: bytes) -> None:
        """Take bytes from the host."""

    def hung_up(self) -> None:
        """Note that the host end was seen closed; it may be opened again."""

    def port_lost(self, error: PortLostError) -> None:
        """Note that the port cannot be used any more."""


class Port:
    """An open port. ``reconnects`` says that an end of file is just a host that went away."""

    def __init__(self, fd: int, poller: Poller, *, reconnects: bool) -> None:
        self._fd = fd
        self._poller = poller
        self._reconnects = reconnects
        self._loop = asyncio.get_running_loop()
        self._memory = memoryview(bytearray(_BUFFER * _BUFFERS))
        self._vector = [
            self._memory[at : at + _BUFFER] for at in range(0, len(self._memory), _BUFFER)
        ]
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._paused = False
        self._lost = False
        self._bulk = False
        self._listener: Listener

    def start(self, listener: Listener) -> None:
        """Begin to read."""
        self._listener = listener
        os.set_blocking(self._fd, False)
        self._poller.watch(self._fd, select.EPOLLIN, self._ready)

    def stop(self) -> None:
        """Let go of the descriptor, without closing it."""
        self._poller.forget(self._fd)

    def pause(self) -> None:
        """Give no more data until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Go on reading after `pause`."""
        self._paused = False
        self._loop.call_soon(self._read)

    @property
    def has_room(self) -> bool:
        """Whether bulk data may be sent now. Short answers may always be sent."""
        return self._queued < _ROOM_BELOW

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call back once, when there may be room; the caller looks again."""
        self._waiting.append(callback)

    def send(self, data: bytes) -> None:
        """Write, now or when the host takes it."""
        rest = memoryview(data)
        if not self._queue:
            rest = self._write(rest)
            if rest:
                # Only now: each time that the host takes something would be an event.
                self._poller.change(self._fd, select.EPOLLIN | select.EPOLLOUT)
        if rest:
            self._queue.append(rest)
            self._queued += len(rest)

    def drop_output(self) -> None:
        """Forget what is not written yet, and who waits for room."""
        self._queue.clear()
        self._queued = 0
        self._waiting.clear()

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        self._read()

    def _read(self) -> None:
        for _ in range(_READS_PER_TURN):
            if self._paused or self._queued > _STOP_READING_ABOVE or self._lost:
                return
            try:
                data = self._read_once()
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(error)
                return
            if not data:
                self._hang_up()
                return
            self._listener.data_received(data)
        self._loop.call_soon(self._read)

    def _read_once(self) -> bytes:
        # Most calls fit into one buffer, and setting up the vector takes its time.
        if not self._bulk:
            data = os.read(self._fd, _BUFFER)
            self._bulk = len(data) == _BUFFER
            return data
        size = os.readv(self._fd, self._vector)
        self._bulk = size >= _BUFFER
        return bytes(self._memory[:size])

    def _write(self, data: memoryview) -> memoryview:
        """Write what can be written now; give the rest."""
        try:
            while data:
                written = os.write(self._fd, data)
                if not written:
                    break
                data = data[written:]
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)
            return data[:0]
        return data

    def _flush(self) -> None:
        was_stopped = self._queued > _STOP_READING_ABOVE
        while self._queue:
            data = self._queue[0]
            rest = self._write(data)
            if not self._queue:
                return  # it failed, and all was dropped
            self._queued -= len(data) - len(rest)
            if rest:
                self._queue[0] = rest
                break
            self._queue.popleft()
        if not self._queue:
            self._poller.change(self._fd, select.EPOLLIN)
        if was_stopped and self._queued <= _STOP_READING_ABOVE:
            self._loop.call_soon(self._read)
        # Only those who wait now: each may wait again at once, and its turn is then the last.
        for _ in range(len(self._waiting)):
            if not self.has_room or not self._waiting:
                break
            self._waiting.popleft()()

    def _hang_up(self) -> None:
        if self._reconnects:
            self._listener.hung_up()
        else:
            self._fail(OSError(errno.ENOTCONN, "the other end closed the connection"))

    def _fail(self, error: OSError) -> None:
        self.drop_output()
        if not self._lost:
            self._lost = True
            self._listener.port_lost(PortLostError(f"the port is lost: {error.strerror}"))


class Output:
    """One session's right to send, until it is closed."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._open = True

    @property
    def has_room(self) -> bool:
        """Whether bulk data may be sent now. Short answers may always be sent."""
        return self._open and self._port.has_room

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call back once, when there may be room; never, if the session ends before."""
        if self._open:
            self._port.when_room(callback)

    def send(self, data: bytes) -> None:
        """Send, or forget the data if the session has ended."""
        if self._open:
            self._port.send(data)

    def close(self) -> None:
        """End the right to send; what is not written yet is dropped."""
        if self._open:
            self._open = False
            self._port.drop_output()
