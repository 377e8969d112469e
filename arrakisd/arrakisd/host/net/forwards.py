"""Ports of the host's loopback that lead into a guest.

A proxy and not the packet filter: packets to 127.0.0.1 that leave the host need
``route_localnet``, which opens the loopback of the host to its neighbours.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import nullcontext

import structlog
import trio

from .host_ports import LOOPBACK, listen
from .interface import InUse

_CONNECT_DEADLINE = 10.0
_MOST_CONNECTIONS = 256
_PIECE = 64 * 1024

log = structlog.get_logger()

Connect = Callable[[], Awaitable[trio.SocketStream]]


class LoopbackForward:
    """One listening port. `run` serves it; when that ends, the port is free.

    ``in_use`` is open while a connection is.
    """

    def __init__(self, port: int, connect: Connect, in_use: InUse = nullcontext) -> None:
        self._connect = connect
        self._in_use = in_use
        self._port = port
        self._connected = 0
        listening = listen(LOOPBACK, port)
        listening.setblocking(False)
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        self._scope = trio.CancelScope()

    def close(self) -> None:
        """Stop listening and cut what is connected."""
        self._scope.cancel()
        self._listener.socket.close()  # at once: the port may be given to another VM

    async def run(self) -> None:
        """Serve until `close`."""
        with self._scope:
            await trio.serve_listeners(self._serve, [self._listener])

    async def _serve(self, client: trio.SocketStream) -> None:
        _close_by_reset(client, True)
        async with client:
            if self._connected >= _MOST_CONNECTIONS:
                return  # to wait would hold a descriptor for each that comes
            self._connected += 1
            try:
                with self._in_use():
                    await self._lead(client)
            except (OSError, trio.TooSlowError) as error:
                log.debug("forwarded connection failed", port=self._port, reason=str(error))
            finally:
                self._connected -= 1

    async def _lead(self, client: trio.SocketStream) -> None:
        with trio.fail_after(_CONNECT_DEADLINE):
            guest = await self._connect()
        _close_by_reset(guest, True)
        async with guest:
            if await _join(client, guest):
                _close_by_reset(client, False)
                _close_by_reset(guest, False)


def _close_by_reset(stream: trio.SocketStream, yes: bool) -> None:
    """Say whether closing a stream is to look like a failure to the other end, or like its end."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", yes, 0))


async def _join(left: trio.SocketStream, right: trio.SocketStream) -> bool:
    """Carry bytes both ways until both have ended, or either breaks; tell whether all came over."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pump, left, right, nursery.cancel_scope)
        nursery.start_soon(_pump, right, left, nursery.cancel_scope)
    return not nursery.cancel_scope.cancel_called


async def _pump(
    source: trio.SocketStream, target: trio.SocketStream, both: trio.CancelScope
) -> None:
    try:
        while data := await source.receive_some(_PIECE):
            await target.send_all(data)
        await target.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        both.cancel()  # a reset of one end is one of the other
