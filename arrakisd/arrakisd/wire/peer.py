"""A protocol connection on a trio stream: one reader, one writer, mailboxes for calls.

Frames are queued whole and written by one task. A task that is cancelled while it waits
for room has sent nothing, one that has got room has sent everything: cancellation can never
cut a frame in two.
"""

from __future__ import annotations

import errno
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from arrakis_rpc.connection import (
    MAX_CHUNK,
    CallCancelled,
    CallFailed,
    CallNotified,
    CallReceived,
    CallSucceeded,
    Connection,
    CreditReceived,
    DataReceived,
    Event,
    Role,
    StreamEnded,
)
from arrakis_rpc.errors import (
    ArrakisError,
    ConnectionLostError,
    ExhaustedError,
    ProtocolError,
)

from .budget import memory_of

_QUEUED_FRAMES = 8
_QUEUED_NOTES = 32
QUEUED_NOTE_BYTES = 64 * 1024
_READ_SIZE = 256 * 1024


class CallStreams:
    """The streams and notifications of one call, seen from either end."""

    def __init__(self, peer: Peer, call_id: int) -> None:
        self._peer = peer
        self.call_id = call_id
        self._inbox, self._events = trio.open_memory_channel[Event](math.inf)
        self._notes = self._note_bytes = 0
        self.channels: tuple[str, ...] | None = None
        self.listens = True
        self.is_refused = False
        self.judge: Callable[[ArrakisError], ArrakisError] = lambda error: error
        self._credit = trio.Event()

    async def receive(self) -> Event:
        """Wait for what the other end sends next: data, an end, a note, or the answer.

        Raises the peer's `lost` error when the connection ends before the call does.
        """
        try:
            event = await self._events.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError) as error:
            raise self._peer.lost() from error
        if isinstance(event, CallNotified):
            self._notes -= 1
            self._note_bytes -= memory_of(event.params)
        if isinstance(event, CallFailed):
            return CallFailed(event.call_id, self.judge(event.error))
        return event

    async def send(self, channel: str, data: bytes) -> None:
        """Send bytes on a channel, as credit allows; returns when all of it is queued."""
        connection, start = self._peer.connection, 0
        while start < len(data) and connection.is_running(self.call_id):
            await self._peer.room()
            window = connection.send_window(self.call_id, channel)
            if window == 0:
                await self._credit.wait()
                continue
            piece = data[start : start + min(MAX_CHUNK, window)]
            self._peer.queue(connection.send_data(self.call_id, channel, piece))
            start += len(piece)

    async def end(self, channel: str) -> None:
        """Say that a channel is finished."""
        await self._peer.room()
        if self._peer.connection.is_running(self.call_id):
            self._peer.queue(self._peer.connection.end_stream(self.call_id, channel))

    async def note(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification that belongs to this call."""
        await self._peer.room()
        if self._peer.connection.is_running(self.call_id):
            self._peer.queue(self._peer.connection.notify(self.call_id, method, dict(params)))

    def consumed(self, event: DataReceived) -> None:
        """Give back the credit for received data, now that it is used."""
        credit = self._peer.connection.consumed(self.call_id, event.channel, len(event.data))
        if credit:
            self._peer.queue(credit)

    def deliver(self, event: Event) -> None:
        """Put an event into the mailbox; only the reader of the connection does this."""
        if isinstance(event, CreditReceived):
            # Whoever waits has this event, whoever comes later gets the next one.
            self._credit.set()
            self._credit = trio.Event()
            return
        if self.is_refused:
            return  # it was sent before the refusal could be known
        if isinstance(event, (CallNotified, DataReceived)) and not self.listens:
            raise ProtocolError("this call takes neither data nor notifications")
        if isinstance(event, DataReceived | StreamEnded) and not self._knows(event.channel):
            raise ProtocolError(f"this call takes nothing on a channel {event.channel!r}")
        if isinstance(event, CallNotified):
            self._notes += 1
            self._note_bytes += memory_of(event.params)
            if self._notes > _QUEUED_NOTES or self._note_bytes > QUEUED_NOTE_BYTES:
                raise ProtocolError("more notifications than anyone reads")
        self._inbox.send_nowait(event)

    def _knows(self, channel: str) -> bool:
        return self.channels is None or channel in self.channels

    def close(self) -> None:
        """Wake whoever waits: nothing more will come."""
        self._inbox.close()
        self._credit.set()


class Peer:
    """One end of a connection. `run` must be running for anything else to work."""

    def __init__(self, stream: trio.abc.Stream, role: Role) -> None:
        self.connection = Connection(role)
        self._stream = stream
        self._calls: dict[int, CallStreams] = {}
        self._frames: deque[bytes] = deque()
        self._wake = trio.Event()
        self._room = trio.Event()
        self._closed = False

    async def run(self) -> None:
        """Read and write until the stream ends or breaks, or the other end breaks the rules.

        Returns at an orderly end; raises `ProtocolError`, or trio's stream errors.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                self._dispatch(await self._find_beginning())
                while data := await self._stream.receive_some(_READ_SIZE):
                    self._dispatch(bytes(data))
                nursery.cancel_scope.cancel()
        finally:
            self._closed = True
            self._room.set()
            for call in list(self._calls.values()):
                call.close()

    async def _find_beginning(self) -> bytes:
        """Skip what is not part of this conversation; give the first bytes that are."""
        return b""

    def _dispatch(self, data: bytes) -> None:
        for event in self.connection.receive(data):
            match event:
                case CallReceived():
                    self._on_call(event)
                case CallCancelled(call_id):
                    self._on_cancel(call_id)
                case _ if call := self._calls.get(event.call_id):
                    call.deliver(event)

    def _on_call(self, event: CallReceived) -> None:
        """Begin to answer a call; for the end that does."""

    def _on_cancel(self, call_id: int) -> None:
        """Give up answering a call; for the end that does."""

    async def _write(self) -> None:
        while True:
            while self._frames:
                batch = b"".join(self._frames) if len(self._frames) > 1 else self._frames[0]
                self._frames.clear()
                self._room.set()
                self._room = trio.Event()
                await self._stream.send_all(batch)
            self._wake = trio.Event()
            await self._wake.wait()

    async def room(self) -> None:
        """Wait until a frame may be queued. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        while len(self._frames) >= _QUEUED_FRAMES and not self._closed:
            await self._room.wait()
        if self._closed:
            raise self.lost()

    def lost(self) -> ArrakisError:
        """Make the error for those whom the end of the connection concerns."""
        return ConnectionLostError("connection was lost in the middle of a call")

    def queue(self, frame: bytes) -> None:
        """Queue a frame for writing, room or not; answers and credit may always."""
        self._frames.append(frame)
        self._wake.set()

    def open_streams(self, call_id: int) -> CallStreams:
        """Make the mailbox of a call."""
        streams = self._calls[call_id] = CallStreams(self, call_id)
        return streams

    def close_streams(self, call_id: int) -> None:
        """Drop the mailbox of a call."""
        if streams := self._calls.pop(call_id, None):
            streams.close()


class CallerPeer(Peer):
    """The end that calls."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream, Role.CALLER)

    @asynccontextmanager
    async def open_call(self, method: str, params: dict[str, Any]) -> AsyncIterator[CallStreams]:
        """Make a call that streams. Leaving the block early cancels it at the other end."""
        await self.room()
        call_id, frame = self.connection.start_call(method, params)
        self.queue(frame)
        streams = self.open_streams(call_id)
        try:
            yield streams
        finally:
            self.close_streams(call_id)
            if self.connection.is_running(call_id):
                self.queue(self.connection.cancel_call(call_id))

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """Make a call without streams; give its result or raise its error."""
        async with self.open_call(method, params) as streams:
            return await receive_answer(streams)


async def receive_answer(streams: CallStreams) -> Any:
    """Wait for a call's answer, passing over everything else; raise its error."""
    while True:
        match await streams.receive():
            case CallSucceeded(_, result):
                return result
            case CallFailed(_, error):
                raise error
            case DataReceived() as event:
                streams.consumed(event)


def domain_error_in(group: BaseException) -> ArrakisError | None:
    """Find the domain error that an exception is, or that a group holds somewhere."""
    if isinstance(group, ArrakisError):
        return group
    if isinstance(group, OSError) and group.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExhaustedError(f"the disk is full: {group}", hint="make room, then try again")
    if isinstance(group, BaseExceptionGroup):
        for error in group.exceptions:
            if found := domain_error_in(error):
                return found
    return None
