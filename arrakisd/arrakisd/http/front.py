"""What stands before the app: it lets in who may ask, and gives each request its nursery."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from ..logs.request_id import acceptable_request_id, request
from ..wire.budget import Budget
from .exchange import MOST_JSON_AT_ONCE, Exchange, Message, Receive, Scope, Send, refuse
from .guards import Asked, Gate, RefusedError, plain_headers

App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_MOST_REQUESTS = 512
_SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
_PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE"),
    (b"access-control-allow-headers", b"authorization, content-type, range, x-request-id"),
    (b"access-control-max-age", b"600"),
)


class Front:
    """The ASGI application that hypercorn serves."""

    def __init__(self, gate: Gate, app: App) -> None:
        self._gate = gate
        self._app = app
        self._bodies = Budget(MOST_JSON_AT_ONCE)
        self._running = 0
        self._idle = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        self._running += 1
        try:
            if scope["type"] == "http":
                await self._serve_http(scope, receive, send)
            else:
                await self._serve_websocket(scope, receive, send)
        finally:
            self._running -= 1
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        while self._running:
            self._idle = trio.Event()
            await self._idle.wait()

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = _asked(scope)
        async with trio.open_nursery() as nursery:
            exchange = Exchange(scope, receive, send, nursery, self._bodies)
            exchange.request_id = acceptable_request_id(asked.headers.get("x-request-id"))
            answer = self._dressed(exchange.send, asked, exchange.request_id)
            try:
                caller = self._admit(asked, scope)
            except RefusedError as refusal:
                nursery.start_soon(exchange.receive)
                exchange.discard_body()
                await refuse(answer, refusal)
            else:
                exchange.caller = f"http {asked.client} {caller}"
                scope["arrakis"] = exchange
                try:
                    with self._gate.while_valid(caller), request(exchange.request_id):
                        await self._app(scope, exchange.receive, answer)
                finally:
                    exchange.forget()
            nursery.cancel_scope.cancel()

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = _asked(scope)
        try:
            caller = self._admit(asked, scope)
        except RefusedError as refusal:
            await _refuse_websocket(scope, send, refusal)
            return
        scope["arrakis.caller"] = f"http {asked.client} {caller}"
        with self._gate.while_valid(caller):
            await self._app(scope, receive, send)

    def _admit(self, asked: Asked, scope: Scope) -> str:
        self._gate.check_place(asked)
        if self._running > _MOST_REQUESTS:
            raise RefusedError(503, f"there are {_MOST_REQUESTS} requests already")
        if scope["type"] == "http" and _is_preflight(scope, asked):
            raise RefusedError(204, "")
        return self._gate.admit(asked, trio.current_time())

    def _dressed(self, send: Send, asked: Asked, request_id: str) -> Send:
        """Add the headers that every answer has."""
        extra = [*_SAFE_HEADERS, (b"x-request-id", request_id.encode())]
        origin = asked.headers.get("origin")
        if origin is not None and self._gate.allows_pages_of(origin):
            extra += [(b"access-control-allow-origin", origin.encode("latin1"))]
            extra += [(b"vary", b"origin"), *_PREFLIGHT]
            extra += [(b"access-control-expose-headers", b"x-request-id")]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        return answer


def _is_preflight(scope: Scope, asked: Asked) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in asked.headers


def _asked(scope: Scope) -> Asked:
    return Asked(
        headers=plain_headers(scope["headers"]),
        server=(scope.get("server") or ("", None))[0],
        client=(scope.get("client") or ("", None))[0],
    )


async def _refuse_websocket(scope: Scope, send: Send, refusal: RefusedError) -> None:
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return

    async def answer(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    await refuse(answer, refusal)
