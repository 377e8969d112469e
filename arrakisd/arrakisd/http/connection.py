"""A connection, as hypercorn should treat it and does not.

hypercorn notices that a client has gone only while it reads, and does not read while a request
waits behind another, or while nobody takes a body. It shields from cancellation what it sends.
And it gives its sockets to nobody, so that what holds on cannot be ended from outside.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import Any, Final

import h11
import structlog
import trio
from hypercorn.events import Closed, Event
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer

# How soon a client is missed that has gone, and how long one whose host says nothing any more.
_LOOK_EVERY = 0.25
_LONGEST_SILENCE = 30.0
_UNANSWERED = 3
_PROBE_AFTER = 10
_PROBE_EVERY = 5
# For so many seconds may a client leave unread what there is for it. The system keeps count.
_LONGEST_STALL = 600
# Of struct tcp_info: state, retransmits, probes, and last_ack_recv, in milliseconds.
_TCP_INFO = struct.Struct("=BxBB52xI")
_ESTABLISHED = 1
_WE_ENDED_IT = (4, 5)
# Of all clients together, with a token or not; a request is what makes one of them count more.
_MOST_CONNECTIONS = 1024

log = structlog.get_logger()


class Connection(TCPServer):
    """A connection that ends when its client does, or when told to, and takes no other along."""

    _open: Final[set[Connection]] = set()

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        transport: Any = getattr(self.stream, "transport_stream", self.stream)
        self._socket: trio.socket.SocketType = transport.socket
        self._is_ended = False

    async def run(self) -> None:
        """Serve it until it ends; at once, where there are too many."""
        if len(self._open) >= _MOST_CONNECTIONS:
            return  # who has accepted it closes it
        self._open.add(self)
        try:
            await super().run()
        except Exception:
            log.exception("a connection of HTTP failed")
        finally:
            self._open.discard(self)

    def end(self) -> None:
        """End it at once: whoever reads or sends finds that out, and else is cancelled soon."""
        self._is_ended = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    async def protocol_send(self, event: Event) -> None:
        """Send, or close; while it is being closed there is nothing more to send."""
        try:
            await super().protocol_send(event)
        except trio.BusyResourceError:
            await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            await super()._read_data()
            nursery.cancel_scope.cancel()
        # Else it would be kept until it had been idle for too long, as one of thousands where
        # clients connect anew for each request.
        await self.idle_task.stop()

    async def _watch(self) -> None:
        while True:
            await trio.sleep(_LOOK_EVERY)
            if self._is_ended or self._is_client_gone():
                break
        self.end()
        await trio.sleep(_LOOK_EVERY)
        # It does not read, but waits for somebody to take what it has read: it must be stopped.
        nursery: Any = self._task_group._nursery
        nursery.cancel_scope.cancel()

    def _is_client_gone(self) -> bool:
        if self._socket.fileno() < 0:
            return True
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        state, retransmits, probes, silence = _TCP_INFO.unpack(info)
        if state != _ESTABLISHED:
            return state not in _WE_ENDED_IT
        # One that is there, but does not read, still answers; and is asked ever more rarely.
        return bool(retransmits + probes >= _UNANSWERED and silence > _LONGEST_SILENCE * 1000)

    def _is_between(self, port: int, client: tuple[str, int] | None) -> bool:
        try:
            ours, theirs = self._socket.getsockname(), self._socket.getpeername()
        except OSError:
            return False
        return ours[1] == port and client in (None, theirs[:2])


class PlainHttp1(H11Protocol):
    """HTTP/1.1 that stays so: what comes before our guards is only as safe as what we looked at."""

    async def _check_protocol(self, event: h11.Request) -> None:
        """Neither upgrade to HTTP/2 nor take it for granted."""


def cut(port: int, client: tuple[str, int] | None = None) -> None:
    """End the connections to a port of ours, or only the one of a client, at once."""
    for one in list(Connection._open):
        if one._is_between(port, client):
            one.end()


def have_clients_watched(listening: socket.socket) -> None:
    """Have the system keep count of what clients do not read and answer, for `Connection`."""
    # The connections inherit it.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LONGEST_STALL * 1000)
