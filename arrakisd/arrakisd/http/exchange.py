"""One request and its answer, between hypercorn and the app.

Around the app is a nursery for each request. What a request starts ends with it: when the
answer is complete, or when the client goes away. The body is handed over a piece at a time to
whoever reads it, and to nobody else: the framework would gather as much as the client sends.

A client that gets its answer while it still sends would block, since the server no longer
reads, and hypercorn would wait for it for ever. The rest of the body is thrown away for a
moment, and then the connection ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, TypeAlias

import trio

from arrakis_rpc.errors import ConnectionLostError, ExhaustedError, InvalidParamsError

from ..wire.budget import Budget
from .guards import RefusedError

Message: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Scope: TypeAlias = dict[str, Any]

MOST_JSON = 16 * 2**20
MOST_JSON_AT_ONCE = 64 * 2**20
_MOST_STRUCTURE = 2**20
_MOST_WHOLE = 2**53
# Possessive, and content with a string that never ends: whatever comes is looked at once.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BODY_DEADLINE = 60.0
_PIECE_DEADLINE = 30.0
_DISCARD_DEADLINE = 2.0


class Exchange:
    """One request, with a nursery for what it starts."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, nursery: trio.Nursery, bodies: Budget
    ) -> None:
        self.scope = scope
        self.nursery = nursery
        self.caller = ""
        self.request_id = ""
        self._receive = receive
        self._send = send
        self._bodies = bodies
        self._held = 0
        self._pieces_in, self._pieces = trio.open_memory_channel[bytes](0)
        self._is_discarding = False
        self._is_answered = False
        self._is_cut = False
        self._whole = trio.Event()
        if not _has_body(scope):
            self._whole.set()
            self._pieces_in.close()

    # What the app sees

    async def receive(self) -> Message:
        """Give the app the end of the connection, and nothing of the body."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                if self._is_answered:
                    # Of an answer that is complete the app may finish with what follows it.
                    await trio.sleep_forever()
                self._is_cut = not self._whole.is_set()
                self._pieces_in.close()
                self._whole.set()
                return message
            await self._hand_over(message)

    async def send(self, message: Message) -> None:
        """Pass on what the app answers."""
        if message["type"] == "http.response.start" and not self._whole.is_set():
            closing = (b"connection", b"close")
            message = {**message, "headers": [*message.get("headers", ()), closing]}
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_last and not self._whole.is_set():
            self.discard_body()
            await self._send({**message, "more_body": True})
            with trio.move_on_after(_DISCARD_DEADLINE):
                await self._whole.wait()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        self._is_answered = self._is_answered or is_last
        await self._send(message)

    # What handlers see

    async def json(self) -> Any:
        """Read a body of JSON; raise `RefusedError` for one too long or too slow."""
        body = bytearray()
        with trio.move_on_after(_BODY_DEADLINE) as scope:
            while (piece := await self._next_piece()) is not None:
                self._hold(len(piece))
                body += piece
                if len(body) > MOST_JSON:
                    raise RefusedError(413, f"a body of JSON has at most {MOST_JSON // 2**20} MiB")
        if scope.cancelled_caught:
            raise RefusedError(408, f"the body was not there after {_BODY_DEADLINE:g} s")
        return _parse(bytes(body))

    async def piece(self) -> bytes | None:
        """Give the next piece of a body of any length; None after the last."""
        with trio.move_on_after(_PIECE_DEADLINE):
            return await self._next_piece()
        raise RefusedError(408, f"nothing more of the body came for {_PIECE_DEADLINE:g} s")

    def discard_body(self) -> None:
        """Throw away what there is of the body, and what still comes."""
        self._is_discarding = True
        self._pieces.close()

    def forget(self) -> None:
        """Give back what the request has held."""
        self._bodies.give_back(self._held)
        self._held = 0

    async def _next_piece(self) -> bytes | None:
        try:
            return await self._pieces.receive()
        except trio.EndOfChannel:
            if self._is_cut:
                gone = "the client went away in the middle of its request"
                raise ConnectionLostError(gone) from None
            return None

    async def _hand_over(self, message: Message) -> None:
        body = message.get("body", b"")
        if body and not self._is_discarding:
            with suppress(trio.BrokenResourceError):  # an answer was found without it
                await self._pieces_in.send(body)
        if not message.get("more_body", False):
            self._whole.set()
            self._pieces_in.close()

    def _hold(self, size: int) -> None:
        try:
            self._bodies.take(size)
        except ExhaustedError:
            raise RefusedError(503, "other requests hold too much memory; try again") from None
        self._held += size


def _has_body(scope: Scope) -> bool:
    if scope["http_version"] not in ("1.0", "1.1"):
        return True  # its headers need not say
    headers = dict(scope["headers"])
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


def _parse(body: bytes) -> Any:
    """Read JSON; raise `InvalidParamsError`.

    A short text can stand for a thousand times as many objects, each of which takes memory:
    what is not the inside of strings is limited more than the whole.
    """
    if len(body) > _MOST_STRUCTURE and len(_STRING.sub(b"", body)) > _MOST_STRUCTURE:
        raise RefusedError(413, "the body has too many values")
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant, parse_float=_number)
        if b"\\u" in body:  # half a surrogate pair is text for JSON, and for nobody else
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise InvalidParamsError("the body is no JSON") from None
    return value


def _number(text: str) -> float:
    """Read a number with a point: for JSON, 2.0 is a whole one."""
    number = float(text)
    return int(number) if abs(number) < _MOST_WHOLE and number.is_integer() else number


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


async def refuse(
    send: Send, refusal: RefusedError, headers: Iterable[tuple[str, str]] = ()
) -> None:
    """Answer with a refusal."""
    body, sent = b"", []
    if refusal.status != 204:
        body = json.dumps({"error": {"message": refusal.message}}).encode()
        sent = [("content-type", "application/json"), ("content-length", str(len(body)))]
    pairs = [*sent, *refusal.headers, *headers]
    encoded = [(name.lower().encode(), value.encode("latin1")) for name, value in pairs]
    await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": False})
