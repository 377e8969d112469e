"""What happens is told to whoever subscribed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

from arrakis_rpc.daemon_api import Event

_BACKLOG = 1000


class Events:
    """Passes events to subscribers; one that falls too far behind misses the rest."""

    def __init__(self) -> None:
        self._subscribers: set[trio.MemorySendChannel[Event]] = set()

    def publish(self, kind: str, vm: str | None = None, **data: Any) -> None:
        """Tell all subscribers; never waits."""
        event = Event(kind=kind, time=time.time(), vm=vm, data=data)
        for subscriber in list(self._subscribers):
            try:
                subscriber.send_nowait(event)
            except trio.WouldBlock:
                self._subscribers.discard(subscriber)
                subscriber.close()

    @contextmanager
    def subscribe(self) -> Iterator[trio.MemoryReceiveChannel[Event]]:
        """Receive all events for the length of a block."""
        sender, receiver = trio.open_memory_channel[Event](_BACKLOG)
        self._subscribers.add(sender)
        try:
            yield receiver
        finally:
            self._subscribers.discard(sender)
            sender.close()
            receiver.close()
