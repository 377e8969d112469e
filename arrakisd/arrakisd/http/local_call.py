"""Operations asked for from inside of the daemon: streams without a wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import trio

from arrakis_rpc.connection import (
    MAX_CHUNK,
    CallFailed,
    CallNotified,
    CallSucceeded,
    DataReceived,
    Event,
    StreamEnded,
)
from arrakis_rpc.errors import ArrakisError

from ..service import Call, Service
from ..wire.streams import Streams
from .exchange import Exchange

# Gives the next piece of what a caller sends; None after the last.
Source: TypeAlias = Callable[[], Awaitable[bytes | None]]

_CALL_ID = 0


class _Streams:
    """An operation's end of a call; both directions hold nothing, and so go as slow as they are."""

    def __init__(
        self, output: trio.MemorySendChannel[Event], channel: str, source: Source | None
    ) -> None:
        self._output = output
        self._channel = channel
        self._source = source

    async def receive(self) -> Event:
        """Wait for the next piece of what the caller has to send; after its end for ever."""
        if self._source is None:
            await trio.sleep_forever()
        assert self._source is not None
        if (piece := await self._source()) is not None:
            return DataReceived(_CALL_ID, self._channel, piece)
        self._source = None
        return StreamEnded(_CALL_ID, self._channel)

    async def send(self, channel: str, data: bytes) -> None:
        """Send bytes to the caller."""
        await self._output.send(DataReceived(_CALL_ID, channel, data))

    async def end(self, channel: str) -> None:
        """Say that a channel is finished."""
        await self._output.send(StreamEnded(_CALL_ID, channel))

    async def note(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification to the caller."""
        await self._output.send(CallNotified(_CALL_ID, method, dict(params)))

    def consumed(self, event: DataReceived) -> None:
        """Nothing is credited, since nothing is held."""


def silent_streams() -> Streams:
    """Give the streams of a call that neither takes nor sends anything."""
    output, unread = trio.open_memory_channel[Event](0)
    unread.close()
    return _Silent(output, "", None)


class _Silent(_Streams):
    async def note(self, _: str, __: Mapping[str, Any]) -> None:
        """Progress is told to those who have a stream."""
        await trio.lowlevel.checkpoint()


def pieces_of(content: bytes) -> Source:
    """Give bytes as the pieces of a stream."""
    starts = iter(range(0, len(content), MAX_CHUNK))

    async def piece() -> bytes | None:
        await trio.lowlevel.checkpoint()
        start = next(starts, None)
        return None if start is None else content[start : start + MAX_CHUNK]

    return piece


class LocalCall:
    """A call that runs as long as its request. What comes of it has to be taken."""

    def __init__(
        self,
        service: Service,
        exchange: Exchange,
        method: str,
        params: dict[str, Any],
        channel: str = "",
        source: Source | None = None,
    ) -> None:
        self._service = service
        self._method = method
        self._params = params
        output, self._events = trio.open_memory_channel[Event](0)
        streams = _Streams(output, channel, source)
        self._call = Call(streams, exchange.caller, request_id=exchange.request_id)
        self._first: Event | None = None
        self.answer: Any = None
        self._scope = trio.CancelScope()
        exchange.nursery.start_soon(self._run, output)

    async def begin(self, patience: float) -> None:
        """Wait so many seconds for a first word; raise it if it is an error."""
        with trio.move_on_after(patience):
            self._first = await self._events.receive()
        if isinstance(self._first, CallFailed):
            raise self._first.error

    async def receive(self) -> Event:
        """Wait for what comes next: data, a notification, or the answer."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await self._events.receive()

    async def data(self) -> bytes | None:
        """Give the next data, None with the answer; raise the error that the call ends with."""
        while True:
            match await self.receive():
                case DataReceived(_, _, data):
                    return data
                case CallSucceeded(_, result):
                    self.answer = result
                    return None
                case CallFailed(_, error):
                    raise error

    async def data_from(self, first: bytes | None) -> AsyncIterator[bytes]:
        """Give data that was taken already, and all that comes after it."""
        data = first
        while data is not None:
            yield data
            data = await self.data()

    async def result(self) -> Any:
        """Wait for the answer, and throw away all else."""
        while await self.data() is not None:
            pass
        return self.answer

    def cancel(self) -> None:
        """End the call, whatever it does."""
        self._scope.cancel()

    async def _run(self, output: trio.MemorySendChannel[Event]) -> None:
        with self._scope:
            await output.send(await self._outcome())

    async def _outcome(self) -> Event:
        try:
            result = await self._service.handle(self._method, self._params, self._call)
            return CallSucceeded(_CALL_ID, result)
        except ArrakisError as error:
            return CallFailed(_CALL_ID, error)
