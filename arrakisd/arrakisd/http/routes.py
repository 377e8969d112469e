"""What a route is, and what its handler gets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal, TypeAlias

from attrs import field, frozen
from quart import Response

from ..service import Call, Service
from .exchange import Exchange
from .local_call import LocalCall, Source, silent_streams

JSON = "application/json"
BYTES = "application/octet-stream"
EVENTS = "text/event-stream"
HTML = "text/html"
TEXT = "text/plain"
PNG = "image/png"


@frozen
class Ask:
    """One request, read and checked."""

    service: Service
    exchange: Exchange
    path: dict[str, str]
    query: Any
    body: Any
    headers: dict[str, str]

    @property
    def name(self) -> str:
        """The VM's name in the path."""
        return self.path["name"]

    async def call(self, method: str, **params: Any) -> Any:
        """Do an operation that has no streams; give its wire form."""
        call = Call(silent_streams(), self.exchange.caller, request_id=self.exchange.request_id)
        return await self.service.handle(method, without_none(params), call)

    async def all_of(self, method: str, part: str) -> list[Any]:
        """Do an operation that gives a page; give what is in all of them."""
        page = await self.call(method)
        found: list[Any] = page[part]
        while page["next"] is not None:
            page = await self.call(method, after=page["next"])
            found += page[part]
        return found

    def open(
        self,
        method: str,
        params: dict[str, Any],
        channel: str = "",
        source: Source | None = None,
    ) -> LocalCall:
        """Begin an operation that has streams; it ends with the request at the latest."""
        return LocalCall(self.service, self.exchange, method, params, channel, source)

    def in_guest(
        self,
        method: str,
        args: dict[str, Any],
        channel: str = "",
        source: Source | None = None,
    ) -> LocalCall:
        """Begin an operation of the agent in the VM in the path."""
        params = {"vm": self.name, "args": without_none(args)}
        return self.open(method, params, channel, source)


Handler: TypeAlias = Callable[[Ask], Awaitable[Any]]


@frozen
class Route:
    """One method of one path. ``fails`` are the statuses that it may answer with, besides all's."""

    verb: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    handler: Handler
    summary: str
    result: Any = None
    body: Any = None
    query: Any = None
    fails: tuple[int, ...] = ()
    takes: str = JSON
    gives: str = JSON
    partial: bool = field(default=False)


def without_none(params: dict[str, Any]) -> dict[str, Any]:
    """Leave out what was not given."""
    return {name: value for name, value in params.items() if value is not None}


def stream(body: AsyncIterator[bytes], status: int, headers: dict[str, str]) -> Response:
    """Answer with what comes, for as long as it comes."""
    response = Response(body, status=status, headers=headers)
    response.timeout = None
    return response
