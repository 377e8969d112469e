"""One client's calls on any stream, and their cancellation. No logic of operations.

A connection is one nursery, a call one task in it with a scope of its own. A cancel
notification cancels the scope, the end of the connection cancels all of them.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import structlog
import trio

from arrakis_rpc.connection import WINDOW, CallReceived, Role
from arrakis_rpc.errors import (
    ArrakisError,
    CancelledError,
    ConnectionLostError,
    ExhaustedError,
    InvalidStateError,
    ProtocolError,
)
from arrakis_rpc.operations import DAEMON, Operation

from .logs.request_id import new_request_id
from .service import Call, Service
from .wire.budget import Budget, memory_of
from .wire.peer import QUEUED_NOTE_BYTES, CallStreams, Peer, domain_error_in

_HELLO = "system.hello"
_HELLO_DEADLINE = 10.0
_FRAME_DEADLINE = 30.0
_MAX_CONNECTIONS = 512
_MOST_HELD = 128 * 2**20

log = structlog.get_logger()


class _ClientPeer(Peer):
    """The callee's end of one client's connection."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        nursery: trio.Nursery,
        service: Service,
        caller: str,
        is_local: bool,
    ) -> None:
        super().__init__(stream, Role.CALLEE)
        self._nursery = nursery
        self._service = service
        self._caller = caller
        self._is_local = is_local
        self._scopes: dict[int, trio.CancelScope] = {}
        self._first_method: str | None = None
        self._idle = trio.Event()
        self.greeted = trio.Event()
        self._budget = Budget(_MOST_HELD)

    @property
    def is_busy(self) -> bool:
        """Whether a call is in flight."""
        return bool(self._scopes)

    async def wait_idle(self) -> None:
        """Wait until no call is in flight."""
        while self._scopes:
            self._idle = trio.Event()
            await self._idle.wait()
        await trio.lowlevel.checkpoint()

    def _on_call(self, event: CallReceived) -> None:
        if self._first_method is None:
            self._first_method = event.method
        scope = self._scopes[event.call_id] = trio.CancelScope()
        streams = self.open_streams(event.call_id)
        operation = DAEMON.get(event.method)
        streams.listens = operation is not None and bool(operation.takes or operation.notes)
        streams.channels = operation.takes if operation else ()
        size = _most_held(event, operation)
        try:
            self._budget.take(size)
        except ExhaustedError as refusal:
            streams.is_refused = True
            named = {"request_id": new_request_id()}
            refusal.detail |= named
            log.info("call refused", method=event.method[:100], reason=refusal.message, **named)
            refused = self._encode(event.call_id, None, refusal)
            self._nursery.start_soon(self._conclude, event.call_id, refused)
        else:
            self._nursery.start_soon(self._answer, event, streams, scope, size)

    def _on_cancel(self, call_id: int) -> None:
        if scope := self._scopes.get(call_id):
            scope.cancel()

    async def _answer(
        self, event: CallReceived, streams: CallStreams, scope: trio.CancelScope, size: int
    ) -> None:
        error: ArrakisError | None = None
        result: Any = None
        call = Call(streams, self._caller, self._is_local)
        try:
            with scope:
                result = await self._handle(event, call)
        except ArrakisError as refusal:
            error = refusal
        if scope.cancelled_caught:
            error = CancelledError(f"{event.method} was cancelled")
        if error is not None:
            error.detail["request_id"] = call.request_id
        self._budget.give_back(size)
        frame = self._encode(event.call_id, result, error)
        del result  # nobody knows how long the frame will wait to be read
        await self._conclude(event.call_id, frame)
        if event.method == _HELLO and error is None:
            self.greeted.set()

    async def _conclude(self, call_id: int, frame: bytes) -> None:
        """Send a call's answer.

        Raises `ExhaustedError`, which ends the connection, if too many of them wait unread.
        """
        del self._scopes[call_id]
        self.close_streams(call_id)
        self._budget.take(len(frame))
        with suppress(ConnectionLostError):
            await self.room()
            self.queue(frame)
        self._budget.give_back(len(frame))
        self._idle.set()

    async def _handle(self, event: CallReceived, call: Call) -> Any:
        if self._first_method != _HELLO:
            raise InvalidStateError(f"the first call on a connection is {_HELLO}")
        if event.method != _HELLO:
            await self.greeted.wait()  # the client need not, it may send both at once
        return await self._service.handle(event.method, event.params, call)

    def _encode(self, call_id: int, result: Any, error: ArrakisError | None) -> bytes:
        if error is None:
            try:
                return self.connection.send_result(call_id, result)
            except ProtocolError as problem:
                error = problem
        return self.connection.send_error(call_id, error)


def _most_held(event: CallReceived, operation: Operation | None) -> int:
    """How much a call can make the daemon hold: what it asks, and what both its ends send."""
    size = memory_of(event.params)
    if operation is not None:
        size += WINDOW * (len(operation.takes) + len(operation.sends))
        size += QUEUED_NOTE_BYTES if operation.notes else 0
    return size


class RpcSessions:
    """All conversations of a daemon, whichever transport they came by."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._peers: set[_ClientPeer] = set()

    @property
    def connections(self) -> int:
        """How many clients there are."""
        return len(self._peers)

    async def serve(
        self,
        stream: trio.abc.Stream,
        caller: str,
        *,
        is_local: bool = False,
        longest_idle: float = math.inf,
    ) -> None:
        """Serve a client until it goes away or breaks the rules; closes the stream.

        ``caller`` names the client in the log; ``is_local`` is that of `Call`. A client that
        has no call in flight and says nothing for ``longest_idle`` seconds is dropped. What ends
        the conversation is not raised.
        """
        try:
            async with stream, trio.open_nursery() as nursery:
                if len(self._peers) >= _MAX_CONNECTIONS:
                    raise ExhaustedError(f"there are {_MAX_CONNECTIONS} connections already")
                peer = _ClientPeer(stream, nursery, self._service, caller, is_local)
                nursery.start_soon(self._police, peer, nursery.cancel_scope, longest_idle)
                self._peers.add(peer)
                try:
                    await peer.run()
                finally:
                    self._peers.discard(peer)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away, which is its right
        except* ArrakisError as group:
            log.warning("connection dropped", caller=caller, reason=str(domain_error_in(group)))
        except* Exception:  # a defect costs the connection, not the daemon
            log.exception("connection failed", caller=caller)

    async def drain(self, deadline: float) -> None:
        """Let the calls in flight finish; at most ``deadline`` seconds."""
        with trio.move_on_after(deadline):
            for peer in list(self._peers):
                await peer.wait_idle()

    async def _police(
        self, peer: _ClientPeer, scope: trio.CancelScope, longest_idle: float
    ) -> None:
        """Drop a client that does not greet, finish a frame that it began, or do anything."""
        with trio.move_on_after(_HELLO_DEADLINE):
            await peer.greeted.wait()
        stalled, idle = not peer.greeted.is_set(), 0.0
        while not stalled and idle < longest_idle:
            before = peer.connection.frames_received
            await trio.sleep(_FRAME_DEADLINE)
            has_moved = peer.connection.frames_received != before
            stalled = peer.connection.in_frame and not has_moved
            idle = 0.0 if has_moved or peer.is_busy else idle + _FRAME_DEADLINE
        scope.cancel()
