"""The operations on events."""

from __future__ import annotations

from arrakis_rpc.converter import unstructure
from arrakis_rpc.guest_api import Nothing

from ..machines.events import Events
from .call import Call


class EventOperations:
    """``events.*``."""

    def __init__(self, events: Events) -> None:
        self._events = events

    async def events_subscribe(self, _: Nothing, call: Call) -> Nothing:
        """Send every event as a notification until the call is cancelled."""
        with self._events.subscribe() as events:
            async for event in events:
                await call.streams.note("event", unstructure(event))
        return Nothing()
