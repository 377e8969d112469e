"""One running call, as its handler sees it: its byte streams and its notes.

Sending is bounded twice: by the credit that the caller gave for the channel, and by the
room in the port's queue, which all calls share. Who finds no room is called back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from arrakis_rpc.connection import MAX_CHUNK, Connection

from .poller import wake
from .port import Output

Note = Callable[[str, dict[str, Any]], None]

_MOST_EARLY_NOTES = 64


class _Inbox:
    """What came on a channel and is not taken yet; None is its end."""

    def __init__(self) -> None:
        self.items: deque[bytes | None] = deque()
        self.waiter: asyncio.Future[None] | None = None

    def put(self, item: bytes | None) -> None:
        self.items.append(item)
        wake(self.waiter)


class Call:
    """The streams of one call, and its notifications, for who wants to `listen`."""

    def __init__(
        self, call_id: int, connection: Connection, output: Output, takes: tuple[str, ...]
    ) -> None:
        self.id = call_id
        self._on_note: Note | None = None
        # What came in one piece with the call is here before its handler has begun.
        self._early_notes: deque[tuple[str, dict[str, Any]]] = deque(maxlen=_MOST_EARLY_NOTES)
        self._connection = connection
        self._output = output
        self._takes = takes
        self._inboxes: dict[str, _Inbox] = {}
        self._when_credit: dict[str, Callable[[], None]] = {}

    def room(self, channel: str) -> int:
        """Give how many bytes `send_nowait` takes now."""
        if not self._output.has_room:
            return 0
        return min(self._connection.send_window(self.id, channel), MAX_CHUNK)

    def when_room(self, channel: str, callback: Callable[[], None]) -> None:
        """Call back once, when there may be `room`; never, if the call is over before."""
        if self._connection.send_window(self.id, channel):
            self._output.when_room(callback)
        else:
            self._when_credit[channel] = callback

    async def wait_room(self, channel: str) -> int:
        """Wait until there is `room`, and give it."""
        while not (room := self.room(channel)):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.when_room(channel, partial(wake, waiter))
            await waiter
        return room

    def send_nowait(self, channel: str, data: bytes) -> None:
        """Send bytes on a channel, no more than its `room`."""
        self._output.send(self._connection.send_data(self.id, channel, data))

    async def receive(self, channel: str) -> bytes | None:
        """Take the next bytes of a channel, None at its end.

        Once they are used up they are to be given to `consumed`.
        """
        inbox = self._inbox(channel)
        while not inbox.items:
            inbox.waiter = asyncio.get_running_loop().create_future()
            await inbox.waiter
        return inbox.items.popleft()

    def consumed(self, channel: str, size: int) -> None:
        """Let the caller send ``size`` bytes more on a channel."""
        if credit := self._connection.consumed(self.id, channel, size):
            self._output.send(credit)

    def data_received(self, channel: str, data: bytes | None) -> None:
        """Take bytes from the caller, or None for the end; a channel nobody reads is ignored."""
        if channel in self._takes:
            self._inbox(channel).put(data)

    def credit_received(self, channel: str) -> None:
        """Wake who waits for credit."""
        if callback := self._when_credit.pop(channel, None):
            callback()

    def listen(self, on_note: Note) -> None:
        """Call back with each notification, those that have come already first."""
        self._on_note = on_note
        while self._early_notes:
            on_note(*self._early_notes.popleft())

    def listen_no_more(self) -> None:
        """Call nobody back any more."""
        self._on_note = None

    def note_received(self, method: str, params: dict[str, Any]) -> None:
        """Hand a notification to the handler, now or when it listens."""
        if self._on_note is not None:
            self._on_note(method, params)
        else:
            self._early_notes.append((method, params))

    def _inbox(self, channel: str) -> _Inbox:
        return self._inboxes.setdefault(channel, _Inbox())
