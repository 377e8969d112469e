"""What an operation sees of its caller: streams and notifications, by whatever transport."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from arrakis_rpc.connection import DataReceived, Event


class Streams(Protocol):
    """The streams and notifications of one call, seen from the operation."""

    async def receive(self) -> Event:
        """Wait for what the caller sends next."""

    async def send(self, channel: str, data: bytes) -> None:
        """Send bytes on a channel; returns when the caller's end has room for more."""

    async def end(self, channel: str) -> None:
        """Say that a channel is finished."""

    async def note(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification that belongs to this call."""

    def consumed(self, event: DataReceived) -> None:
        """Give back the credit for received data, now that it is used."""
