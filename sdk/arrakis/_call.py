"""One call while it runs, for any number of threads.

Whichever thread first needs something from the daemon does the reading for all; the
others wait until it has read. So one thread can read a command's output while another
writes its input and a third kills it, without a thread of our own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from threading import Condition
from typing import Any, TypeAlias

from arrakis_rpc.connection import (
    MAX_CHUNK,
    WINDOW,
    CallFailed,
    CallNotified,
    CallSucceeded,
    DataReceived,
    Event,
)
from arrakis_rpc.errors import ArrakisError, InvalidStateError, ProtocolError
from arrakis_rpc.operations import Operation

from ._pool import Pool
from ._wire import understand

Item: TypeAlias = DataReceived | CallNotified

CANCEL_SECONDS = 5.0


class Call:
    """A running call. It has a connection to itself until it is over."""

    def __init__(self, pool: Pool, operation: Operation, params: dict[str, Any]) -> None:
        self.operation = operation
        self._pool = pool
        self._changed = Condition()
        self._reading = False
        self._released = False
        self._inbox: deque[Item] = deque()
        self._held: dict[str, int] = {}
        self._used: dict[str, int] = {}
        self._answer: CallSucceeded | CallFailed | None = None
        self._failure: BaseException | None = None
        self._wire = pool.take()
        try:
            self._id = self._wire.start_call(operation.method, params)
            self._wire.flush()
        except BaseException:
            self._wire.close()
            raise

    @property
    def is_over(self) -> bool:
        """Whether the daemon has answered, or never will."""
        return self._answer is not None or self._failure is not None

    def fileno(self) -> int:
        """Give the descriptor that becomes readable when `take_nowait` may have more."""
        return self._wire.fileno()

    def take(self, timeout: float | None = None) -> Item | None:
        """Give the next data or notification; None when the call is over.

        Raises `TimeoutError` after ``timeout`` seconds without any, and the reason when
        the connection broke.
        """
        with self._changed:
            self._run_until(lambda: bool(self._inbox) or self.is_over, timeout)
            return self._pop()

    def take_nowait(self) -> Item | None:
        """Give the next data or notification that is there; None when there is none."""
        with self._changed:
            if not self._inbox and not self.is_over and not self._reading:
                self._exchange()
            return self._pop()

    def result(self) -> Any:
        """Give the result of a call that is over, or raise the error it ended with."""
        match self._answer:
            case CallSucceeded(_, result):
                return understand(result, self.operation.result)
            case CallFailed(_, error):
                raise error
        if self._failure is not None:
            raise self._failure
        raise InvalidStateError(f"{self.operation.method} is still running")

    def room(self, channel: str) -> int:
        """Give how many bytes can be sent on a channel without waiting for the daemon."""
        return self._wire.connection.send_window(self._id, channel)

    def wait_room(
        self, channel: str, timeout: float | None = None, *, or_item: bool = False
    ) -> bool:
        """Wait until bytes can be sent on a channel, or the call is over.

        With ``or_item``, also until `take_nowait` gives something. False after
        ``timeout`` seconds without any of it.
        """
        try:
            with self._changed:
                self._run_until(
                    lambda: (
                        self.room(channel) > 0 or self.is_over or (or_item and bool(self._inbox))
                    ),
                    timeout,
                )
        except TimeoutError:
            return False
        return True

    def is_full(self, channel: str) -> bool:
        """Whether what was received and not taken fills a channel's window."""
        return self._held.get(channel, 0) > WINDOW - MAX_CHUNK

    def send(self, channel: str, data: bytes) -> None:
        """Send bytes on a channel, as fast as they are consumed.

        What is sent to a call that is over is dropped.
        """
        view = memoryview(data)
        while view:
            with self._changed:
                self._run_until(lambda: self.room(channel) > 0 or self.is_over, None)
                if self.is_over:
                    return
                size = min(len(view), self.room(channel), MAX_CHUNK)
                chunk = bytes(view[:size])
                self._send(self._wire.connection.send_data(self._id, channel, chunk))
            view = view[size:]

    def end(self, channel: str) -> None:
        """Say that no more comes on a channel."""
        with self._changed:
            if not self.is_over:
                self._send(self._wire.connection.end_stream(self._id, channel))

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Send a notification of this call, unless it is over."""
        with self._changed:
            if not self.is_over:
                self._send(self._wire.connection.notify(self._id, method, params))

    def cancel(self) -> None:
        """Ask that the call be given up, and wait a moment for the daemon to have done so."""
        with self._changed:
            if self.is_over:
                return
            self._send(self._wire.connection.cancel_call(self._id))
        until = time.monotonic() + CANCEL_SECONDS
        try:
            while self.take(max(0.0, until - time.monotonic())) is not None:
                pass
        except TimeoutError:
            self.close()

    def close(self) -> None:
        """Let go of the connection. A call that is not over is thereby cancelled."""
        with self._changed:
            if self._answer is None and self._failure is None:
                self._failure = InvalidStateError("this call was closed")
            if self._reading:
                self._wire.wake()  # ... and the thread that reads lets go of it
            else:
                self._release()

    def _pop(self) -> Item | None:
        if not self._inbox:
            if self._failure is not None:
                raise self._failure
            return None
        item = self._inbox.popleft()
        if isinstance(item, DataReceived) and not self.is_over:
            self._give_credit(item.channel, len(item.data))
        return item

    def _give_credit(self, channel: str, size: int) -> None:
        self._used[channel] = self._used.get(channel, 0) + size
        credit = self._wire.connection.consumed(self._id, channel, size)
        if credit:
            self._held[channel] -= self._used.pop(channel)
            self._send(credit)

    def _send(self, frame: bytes) -> None:
        self._wire.queue(frame)
        self._wire.flush()
        if self._wire.has_unsent:
            self._run_until(lambda: not self._wire.has_unsent or self.is_over, None)

    def _run_until(self, ready: Callable[[], bool], timeout: float | None) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        tried = False
        while not ready():
            remaining = None if until is None else max(0.0, until - time.monotonic())
            if tried and remaining == 0:
                raise TimeoutError
            tried = True
            if not self._reading:
                self._read(remaining)
            elif self._wire.has_unsent:
                # The reader may not know of it: it sleeps until there is something to read.
                self._changed.release()
                try:
                    self._wire.wait_ready(remaining, reading=False)
                finally:
                    self._changed.acquire()
                if not self.is_over:
                    self._wire.flush()
            else:
                self._changed.wait(remaining)

    def _read(self, timeout: float | None) -> None:
        self._reading = True
        try:
            self._changed.release()
            try:
                self._wire.wait_ready(timeout)
            finally:
                self._changed.acquire()
            self._exchange()
        finally:
            self._reading = False
            if self._failure is not None:
                self._release()
            self._changed.notify_all()

    def _exchange(self) -> None:
        # From here on an exception, KeyboardInterrupt included, may lose what was read.
        try:
            self._wire.flush()
            for event in self._wire.receive():
                self._dispatch(event)
            if self._answer is not None:
                self._release()
        except BaseException as error:
            if self._failure is None:
                self._failure = error if isinstance(error, ArrakisError) else _interrupted()
            self._release()
            if not isinstance(error, ArrakisError):
                raise

    def _dispatch(self, event: Event) -> None:
        match event:
            case DataReceived(_, channel, data):
                if channel not in self.operation.sends:
                    raise ProtocolError(f"unexpected channel {channel[:40]!r}")
                self._held[channel] = self._held.get(channel, 0) + len(data)
                self._inbox.append(event)
            case CallNotified():
                self._inbox.append(event)
            case CallSucceeded() | CallFailed():
                self._answer = event

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        if self._failure is None and self._answer is not None:
            self._pool.give(self._wire)
        else:
            self._wire.close()


def _interrupted() -> ArrakisError:
    return InvalidStateError("this call was interrupted while it received an answer")
