"""The Unix socket: who may connect, and who does."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from arrakis_rpc.errors import AlreadyExistsError, UnsupportedError

from .rpc_session import RpcSessions

_UCRED = struct.Struct("3i")

log = structlog.get_logger()


class RpcServer:
    """Serves one listening socket."""

    def __init__(self, sessions: RpcSessions) -> None:
        self._sessions = sessions
        self._accepting = trio.CancelScope()

    async def serve(self, listener: trio.SocketListener) -> None:
        """Accept clients until told to stop, and serve them until cancelled."""
        async with trio.open_nursery() as nursery:
            with self._accepting:
                await trio.serve_listeners(self._serve_client, [listener], handler_nursery=nursery)

    def stop_accepting(self) -> None:
        """Accept no more clients; those that are there stay."""
        self._accepting.cancel()

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        await self._sessions.serve(stream, _peer_of(stream), is_local=True)


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
async def open_unix_listener(
    path: Path, group: int | None, handed: socket.socket | None = None
) -> AsyncIterator[trio.SocketListener]:
    """Listen on a Unix socket for the length of a block; the file is gone afterwards.

    A socket that a crashed daemon left is replaced. One that was ``handed`` over listens
    already, and its file is its maker's. Raises `AlreadyExistsError` where another daemon
    listens, `UnsupportedError` where no socket can be made.
    """
    if handed is not None:
        async with trio.SocketListener(trio.socket.from_stdlib_socket(handed)) as listener:
            yield listener
        return
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
