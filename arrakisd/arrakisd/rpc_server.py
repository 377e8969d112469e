"""The Unix-socket server: connections, calls and their cancellation. No logic of operations.

A connection is one nursery, a call one task in it with a scope of its own. A cancel
notification cancels the scope, the end of the connection cancels all of them.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
import trio

from arrakis_rpc.connection import CallReceived, Role
from arrakis_rpc.errors import (
    AlreadyExistsError,
    ArrakisError,
    CancelledError,
    ConnectionLostError,
    ExhaustedError,
    InternalError,
    InvalidStateError,
    ProtocolError,
    UnsupportedError,
)
from arrakis_rpc.operations import DAEMON

from .peer import CallStreams, Peer, domain_error_in
from .service import Call, Service

_HELLO = "system.hello"
_HELLO_DEADLINE = 10.0
_FRAME_DEADLINE = 30.0
_MAX_CONNECTIONS = 512
_UCRED = struct.Struct("3i")

log = structlog.get_logger()


class _ClientPeer(Peer):
    """The callee's end of one client's connection."""

    def __init__(
        self, stream: trio.abc.Stream, nursery: trio.Nursery, service: Service, caller: str
    ) -> None:
        super().__init__(stream, Role.CALLEE)
        self._nursery = nursery
        self._service = service
        self._caller = caller
        self._scopes: dict[int, trio.CancelScope] = {}
        self._first_method: str | None = None
        self._idle = trio.Event()
        self.greeted = trio.Event()

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
        self._nursery.start_soon(self._answer, event, streams, scope)

    def _on_cancel(self, call_id: int) -> None:
        if scope := self._scopes.get(call_id):
            scope.cancel()

    async def _answer(
        self, event: CallReceived, streams: CallStreams, scope: trio.CancelScope
    ) -> None:
        error: ArrakisError | None = None
        result: Any = None
        try:
            with scope:
                result = await self._handle(event, streams)
        except Exception as problem:  # noqa: BLE001 -- one call's failure is its own
            error = _answerable(problem, event.method)
        if scope.cancelled_caught:
            error = CancelledError(f"{event.method} was cancelled")
        del self._scopes[event.call_id]
        self.close_streams(event.call_id)
        with suppress(ConnectionLostError):
            await self.room()
            self.queue(self._encode(event.call_id, result, error))
        self._idle.set()
        if event.method == _HELLO and error is None:
            self.greeted.set()

    async def _handle(self, event: CallReceived, streams: CallStreams) -> Any:
        if self._first_method != _HELLO:
            raise InvalidStateError(f"the first call on a connection is {_HELLO}")
        if event.method != _HELLO:
            await self.greeted.wait()  # the client need not, it may send both at once
        return await self._service.handle(event.method, event.params, Call(streams, self._caller))

    def _encode(self, call_id: int, result: Any, error: ArrakisError | None) -> bytes:
        if error is None:
            try:
                return self.connection.send_result(call_id, result)
            except ProtocolError as problem:
                error = problem
        return self.connection.send_error(call_id, error)


def _answerable(problem: Exception, method: str) -> ArrakisError:
    if error := domain_error_in(problem):
        return error
    log.error("call failed", method=method, exc_info=problem)
    return InternalError(
        f"{method} failed by a defect of the daemon: {problem!r}",
        hint="the daemon's log has the traceback",
    )


class RpcServer:
    """Serves one listening socket."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._peers: set[_ClientPeer] = set()
        self._accepting = trio.CancelScope()

    async def serve(self, listener: trio.SocketListener) -> None:
        """Accept clients until drained, and serve them until cancelled."""
        async with trio.open_nursery() as nursery:
            with self._accepting:
                await trio.serve_listeners(self._serve_client, [listener], handler_nursery=nursery)

    async def drain(self, deadline: float) -> None:
        """Accept no more, and let the calls in flight finish; at most ``deadline`` seconds."""
        self._accepting.cancel()
        with trio.move_on_after(deadline):
            for peer in list(self._peers):
                await peer.wait_idle()

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        caller = _peer_of(stream)
        try:
            async with stream, trio.open_nursery() as nursery:
                if len(self._peers) >= _MAX_CONNECTIONS:
                    raise ExhaustedError(f"there are {_MAX_CONNECTIONS} connections already")
                peer = _ClientPeer(stream, nursery, self._service, caller)
                nursery.start_soon(self._police, peer, nursery.cancel_scope)
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

    async def _police(self, peer: _ClientPeer, scope: trio.CancelScope) -> None:
        """Drop a client that does not greet, or does not finish a frame that it began."""
        with trio.move_on_after(_HELLO_DEADLINE):
            await peer.greeted.wait()
        stalled = not peer.greeted.is_set()
        while not stalled:
            before = peer.connection.frames_received
            await trio.sleep(_FRAME_DEADLINE)
            stalled = peer.connection.in_frame and peer.connection.frames_received == before
        scope.cancel()


def _peer_of(stream: trio.SocketStream) -> str:
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(credentials)
    return f"uid={uid} pid={pid}"


def _remove_dead(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise AlreadyExistsError(
                f"another daemon listens on {path}",
                hint="stop it, or give this one another socket with --socket",
            )
    path.unlink()


def _bound(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o117)
    try:
        listening.bind(str(path))
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(old_mask)
    return listening


@asynccontextmanager
async def open_unix_listener(path: Path, group: int | None) -> AsyncIterator[trio.SocketListener]:
    """Listen on a Unix socket for the length of a block; the file is gone afterwards.

    A socket that a crashed daemon left is replaced. Raises `AlreadyExistsError` where one
    listens, `UnsupportedError` where no socket can be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead(path)
        listening = _bound(path)
    except OSError as error:
        raise UnsupportedError(
            f"cannot listen on {path}: {error.strerror or error}",
            hint="choose another place with --socket",
        ) from error
    try:
        if group is not None:
            try:
                os.chown(path, -1, group)
            except PermissionError:
                log.warning("only this user can use the socket: it may not give it to the group")
        listening.listen(128)
        async with trio.SocketListener(trio.socket.from_stdlib_socket(listening)) as listener:
            yield listener
    finally:
        listening.close()
        path.unlink(missing_ok=True)
