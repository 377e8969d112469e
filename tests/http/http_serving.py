"""HTTP served in this process, by a service that does what it is told to, and its clients."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import trio
from real_daemon import SLACK
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    RejectConnection,
    RejectData,
    Request,
)
from wsproto.extensions import PerMessageDeflate
from wsproto.utilities import LocalProtocolError

from arrakis_rpc.framing import encode_frame
from arrakisd.http import open_http_server
from arrakisd.rpc_session import RpcSessions
from arrakisd.service import Call
from arrakisd.settings.http import HttpConfig
from arrakisd.storage.tokens import TokenStore

_MOMENT = 0.01


class Scripted:
    """A service that greets, streams for ever, waits for ever, or says what it was told."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.sent = 0

    async def handle(self, method: str, params: dict[str, Any], call: Call) -> Any:
        self.running.add(method)
        try:
            match method:
                case "system.hello":
                    return {"version": 1, "daemon": "test"}
                case "system.health":
                    return {"caller": call.caller, "is_local": call.is_local}
                case "exec.run":
                    while True:
                        await call.streams.send("stdout", bytes(65536))
                        self.sent += 65536
                case "image.list":
                    return {"images": "x" * 900_000}
                case "events.subscribe":
                    while True:
                        await call.streams.note("event", {"text": "x" * 60_000})
                        self.sent += 60_000
                case _:
                    await trio.sleep_forever()
        finally:
            self.running.discard(method)


class Server:
    """What a test needs of the daemon."""

    def __init__(self, port: int, tokens: TokenStore, token: str, service: Scripted) -> None:
        self.port = port
        self.tokens = tokens
        self.token = token
        self.service = service
        self.sessions: RpcSessions

    def headers(self, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", **more}

    def head(self, line: str, *more: str) -> bytes:
        """Give the head of a request with a good token."""
        lines = [line, "Host: localhost", f"Authorization: Bearer {self.token}", *more, "", ""]
        return "\r\n".join(lines).encode()


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Server]:
    """Serve, with a token called "one"."""
    tokens = TokenStore(directory)
    service = Scripted()
    sessions = RpcSessions(service)  # type: ignore[arg-type]
    config = HttpConfig(address="127.0.0.1:0")
    opened = open_http_server(config, service, sessions, tokens)  # type: ignore[arg-type]
    async with opened as http, trio.open_nursery() as nursery:
        nursery.start_soon(http.serve)
        server = Server(http._port, tokens, await tokens.create("one"), service)
        server.sessions = sessions
        try:
            yield server
        finally:
            http.cut()
            nursery.cancel_scope.cancel()


class RefusedError(Exception):
    """The daemon answered with a status."""


class Client:
    """A WebSocket client that sends what it is told to."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.ws = WSConnection(ConnectionType.CLIENT)
        self.received = bytearray()
        self.code: int | None = None
        self.is_closed = False
        self.headers: dict[bytes, bytes] = {}
        self._number = 0

    async def upgrade(
        self, path: str, host: str, headers: dict[str, str], *, deflate: bool = False
    ) -> None:
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        extensions = [PerMessageDeflate()] if deflate else []
        await self.stream.send_all(
            self.ws.send(
                Request(host=host, target=path, extra_headers=pairs, extensions=extensions)
            )
        )
        status, body = 0, b""
        while True:
            self.ws.receive_data(await self.stream.receive_some() or None)
            for event in self.ws.events():
                match event:
                    case AcceptConnection():
                        self.headers = dict(event.extra_headers)
                        self.extensions = event.extensions
                        return
                    case RejectConnection(status_code=status, has_body=False):
                        raise RefusedError(status, "")
                    case RejectConnection(status_code=status):
                        pass
                    case RejectData(data=data, body_finished=finished):
                        body += data
                        if finished:
                            raise RefusedError(status, body.decode())

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(self.ws.send(BytesMessage(data=data)))

    def frame(self, method: str, **params: Any) -> bytes:
        self._number += 1
        message = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        return encode_frame(message)

    async def call(self, method: str, **params: Any) -> None:
        await self.send(self.frame(method, **params))

    async def hello(self) -> None:
        await self.call("system.hello", versions=[1], client="test")
        assert (await self.message())["result"]["version"] == 1

    async def message(self) -> Any:
        """Receive one frame."""
        size = int.from_bytes(await self._exactly(4), "big")
        return msgpack.unpackb(await self._exactly(size))

    async def _exactly(self, size: int) -> bytes:
        while len(self.received) < size:
            assert not self.is_closed
            await self._more()
        data = bytes(self.received[:size])
        del self.received[:size]
        return data

    async def _more(self) -> None:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self.is_closed = True
            return
        with contextlib.suppress(LocalProtocolError):  # it was closed already
            self.ws.receive_data(data)
        for event in self.ws.events():
            match event:
                case BytesMessage(data=data):
                    self.received += data
                case CloseConnection(code=code):
                    self.code = code

    async def wait_closed(self, seconds: float = 1.0) -> None:
        """Wait until the daemon ends it."""
        await in_time(self._until_closed, seconds)

    async def _until_closed(self) -> None:
        while not self.is_closed and self.code is None:
            await self._more()


@asynccontextmanager
async def connected(
    server: Server,
    headers: dict[str, str] | None = None,
    *,
    path: str = "/v1/rpc",
    host: str = "",
    **options: Any,
) -> AsyncIterator[Client]:
    """Connect with what is given; raise `RefusedError` if that lets nobody in."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        client = Client(stream)
        given = server.headers() if headers is None else headers
        with trio.fail_after(SLACK * 5):
            await client.upgrade(path, host or f"127.0.0.1:{server.port}", given, **options)
        yield client


async def in_time(wait: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Wait for something that can be cancelled and begun again; fail if it takes too long.

    Moments are counted, of which one is lost if the machine stands still: the server does, too.
    """
    for _ in range(round(seconds / _MOMENT)):
        with trio.move_on_after(_MOMENT):
            await wait()
            return
    raise trio.TooSlowError


async def eventually(condition: Callable[[], object], seconds: float = 1.0) -> None:
    async def wait() -> None:
        while not condition():
            await trio.sleep(_MOMENT)

    await in_time(wait, seconds)


async def answers(server: Server) -> None:
    """Whether another client is served."""
    with trio.fail_after(SLACK * 2):
        async with connected(server) as other:
            await other.hello()
            await other.call("system.health")
            await other.message()


async def until_still(count: Callable[[], int]) -> int:
    """Wait until a number has been the same for a while."""
    last = -1
    with trio.fail_after(SLACK * 20):
        while count() != last or last == 0:
            last = count()
            await trio.sleep(0.3)
    return last
