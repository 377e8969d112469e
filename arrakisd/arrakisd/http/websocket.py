"""The whole protocol over a WebSocket, at ``/v1/rpc``.

Its binary messages are pieces of one stream of bytes in each direction, the same bytes as on the
Unix socket; where one message ends and the next begins means nothing. `front` has let in who
comes here. This is beside the framework, which would put a queue of its own in between.
"""

from __future__ import annotations

from typing import Any

import trio
from hypercorn.protocol.events import Event, StreamClosed
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.typing import WebsocketAcceptEvent
from quart_trio import QuartTrio
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from arrakis_rpc.errors import ProtocolError

from ..rpc_session import RpcSessions
from . import exchange
from .connection import cut
from .exchange import Receive, Scope, Send
from .guards import RefusedError

PATH = "/v1/rpc"
_PIECE = 256 * 1024
_LONGEST_IDLE = 600.0
_CLOSE_DEADLINE = 0.5
_REST_DEADLINE = 2.0  # after this, whoever goes on sending has been cut off
_GOING_AWAY = 1001


class PiecewiseWebSocket(WSStream):
    """hypercorn's WebSocket, without what it would hold for whoever sends much.

    It gathers the fragments of a message, and goes on with that after it has refused one as too
    long, without a word to the app. Here each fragment is passed on as it comes. And it would
    agree to compression, by which 64 KiB become 64 MiB at one stroke. Its connection would stay
    open until the next ping was due.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._pinging = trio.CancelScope()

    async def handle(self, event: Event) -> None:
        """Take what comes; what is no WebSocket ends it."""
        try:
            await super().handle(event)
        except (LocalProtocolError, RemoteProtocolError):
            await self.send(StreamClosed(stream_id=self.stream_id))
        if isinstance(event, StreamClosed):
            self._pinging.cancel()

    async def _send_pings(self) -> None:
        with self._pinging:
            await super()._send_pings()

    async def _accept(self, message: WebsocketAcceptEvent) -> None:
        self.handshake.extensions = None
        await super()._accept(message)

    async def _handle_events(self) -> None:
        assert self.app_put is not None
        for event in self.connection.events():
            if isinstance(event, Message):
                kind = "text" if isinstance(event.data, str) else "bytes"
                await self.app_put({"type": "websocket.receive", kind: event.data})
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                if self.connection.state is ConnectionState.REMOTE_CLOSING:
                    await self._send_wsproto_event(event.response())
                await self.send(StreamClosed(stream_id=self.stream_id))
                return


class _Sender:
    """Sends in a task of its own, because what is sent through hypercorn cannot be cancelled."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._pieces_in, self._pieces = trio.open_memory_channel[bytes](0)
        self._is_done = trio.Event()

    async def run(self) -> None:
        """Send what there is, until `finish`."""
        with trio.CancelScope(shield=True):
            async for piece in self._pieces:
                await self._send({"type": "websocket.send", "bytes": piece})
            await self._send({"type": "websocket.close", "code": _GOING_AWAY})
            self._is_done.set()

    async def send(self, piece: bytes) -> None:
        """Wait until the piece before is sent, and have this one sent next."""
        await self._pieces_in.send(piece)

    async def finish(self, deadline: float) -> bool:
        """Take no more, and wait until all is sent; give whether it was."""
        self._pieces_in.close()
        with trio.move_on_after(deadline, shield=True):
            await self._is_done.wait()
        return self._is_done.is_set()


class WebSocketStream(trio.abc.Stream):
    """The bytes in a WebSocket's messages. What is held is one message in each direction."""

    def __init__(self, receive: Receive, sender: _Sender) -> None:
        self._receive = receive
        self._sender = sender
        self._received = memoryview(b"")
        self.is_over = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; returns when all but the last piece is handed to the system."""
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            await self._sender.send(bytes(view[start : start + _PIECE]))

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: `send_all` knows better."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Give what came; nothing at the end. Raises `ProtocolError` for what is not bytes."""
        while not self._received and not self.is_over.is_set():
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self.is_over.set()
            elif "text" in message:
                raise ProtocolError("the messages of this WebSocket are binary")
            else:
                self._received = memoryview(message["bytes"])
        size = len(self._received) if max_bytes is None else max_bytes
        given, self._received = bytes(self._received[:size]), self._received[size:]
        return given

    async def take_the_rest(self) -> None:
        """Throw away what still comes: hypercorn waits for its queue to have room, even to end."""
        with trio.move_on_after(_REST_DEADLINE, shield=True):
            while not self.is_over.is_set():
                if (await self._receive())["type"] == "websocket.disconnect":
                    self.is_over.set()

    async def aclose(self) -> None:
        """Do nothing: the connection is the server's."""
        await trio.lowlevel.checkpoint()


class _RpcConnection:
    """A WebSocket, from the moment when somebody asks for it."""

    def __init__(self, sessions: RpcSessions, scope: Scope) -> None:
        self._sessions = sessions
        self._scope = scope

    async def __call__(self, receive: Receive, send: Send) -> None:
        """Serve it until one of both ends it."""
        if self._scope["path"] != PATH:
            await _refuse(send, RefusedError(404, "there is no WebSocket here"))
            return
        await receive()  # that somebody wants to connect, which we know
        await send({"type": "websocket.accept"})
        caller: str = self._scope["arrakis.caller"]
        async with trio.open_nursery() as nursery:
            sender = _Sender(send)
            stream = WebSocketStream(receive, sender)
            nursery.start_soon(sender.run)
            try:
                await self._sessions.serve(stream, caller, longest_idle=_LONGEST_IDLE)
            finally:
                nursery.start_soon(stream.take_the_rest)
                said_goodbye = False
                with trio.move_on_after(2 * _CLOSE_DEADLINE, shield=True):
                    said_goodbye = await sender.finish(_CLOSE_DEADLINE)
                    await stream.is_over.wait()
                if not said_goodbye or not stream.is_over.is_set():
                    cut(self._scope["server"][1], tuple(self._scope["client"]))


async def _refuse(send: Send, refusal: RefusedError) -> None:
    async def answer(message: exchange.Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    await exchange.refuse(answer, refusal)


def serve_rpc(app: QuartTrio, sessions: RpcSessions) -> None:
    """Have an app speak the protocol at its place, and refuse WebSockets everywhere else."""

    def connection(_: QuartTrio, scope: Scope) -> _RpcConnection:
        return _RpcConnection(sessions, scope)

    app.asgi_websocket_class = connection  # type: ignore[assignment]
