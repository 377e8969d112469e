"""Connections: how they end with their clients, and that they stay what they are."""

from __future__ import annotations

import ctypes
import importlib.metadata
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from http_serving import Server, answers, connected, eventually, in_time, serving, until_still

from arrakis_rpc.errors import UnsupportedError
from arrakisd.http import connection
from arrakisd.http.connection import Connection
from arrakisd.http.mending import mend_hypercorn

HOWS = ["close", "abort", "half"]
_SO_ATTACH_FILTER = 26


@asynccontextmanager
async def speaking(server: Server) -> AsyncIterator[trio.SocketStream]:
    """Open a bare connection."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        yield stream


async def leave(stream: trio.SocketStream, how: str) -> None:
    """Go away."""
    if how == "half":
        await stream.send_eof()
        return
    if how == "abort":
        linger = struct.pack("ii", 1, 0)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    await stream.aclose()


def vanish(stream: trio.SocketStream) -> None:
    """Be as a host that has lost its power: nothing is heard, and so nothing is said."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    stream.socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Miss a silent host after seconds."""
    monkeypatch.setattr(connection, "_PROBE_AFTER", 1)
    monkeypatch.setattr(connection, "_PROBE_EVERY", 1)
    monkeypatch.setattr(connection, "_LONGEST_SILENCE", 1.5)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("more", [b"", b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_a_request_ends_with_its_client(tmp_path: Path, how: str, more: bytes) -> None:
    """Within a second, however it goes, and also if it has asked for something else already."""
    async with serving(tmp_path) as server, speaking(server) as client:
        await client.send_all(server.head("DELETE /v1/vms HTTP/1.1") + more)
        await eventually(lambda: server.service.running, 5)
        await leave(client, how)
        await eventually(lambda: not server.service.running)
        await eventually(lambda: not Connection._open)
        await answers(server)


@pytest.mark.parametrize("how", HOWS)
async def test_an_upload_ends_with_its_client(tmp_path: Path, how: str) -> None:
    """Within a second, also if nobody takes what it has sent."""
    head = "PUT /v1/vms/box/file?path=a HTTP/1.1"
    async with serving(tmp_path) as server, speaking(server) as client:
        await client.send_all(server.head(head, f"Content-Length: {2**40}"))
        await eventually(lambda: server.service.running, 5)
        for _ in range(20):  # more pieces than are kept, and so the last of them are not read
            await client.send_all(bytes(100))
            await trio.testing.wait_all_tasks_blocked(0.01)
        await leave(client, how)
        await eventually(lambda: not server.service.running)
        await eventually(lambda: not Connection._open)


async def test_a_request_ends_with_its_clients_host(tmp_path: Path, impatient: None) -> None:
    """A host that says nothing any more is asked, and missed."""
    async with serving(tmp_path) as server, speaking(server) as client, speaking(server) as other:
        await client.send_all(server.head("DELETE /v1/vms HTTP/1.1"))
        await other.send_all(server.head("DELETE /v1/vms/box HTTP/1.1"))
        await eventually(lambda: len(server.service.running) == 2, 5)
        vanish(client)
        await eventually(lambda: server.service.running == {"vm.destroy"}, 20)
        await eventually(lambda: len(Connection._open) == 1)


async def test_a_websocket_ends_with_its_clients_host(tmp_path: Path, impatient: None) -> None:
    """Also while there is something to send to it."""
    async with serving(tmp_path) as server, connected(server) as client:
        await client.hello()
        vanish(client.stream)
        await client.call("events.subscribe")
        await eventually(lambda: server.service.running, 5)
        await eventually(lambda: not server.service.running, 20)
        await eventually(lambda: server.sessions.connections == 0)


async def test_a_client_that_does_not_read_is_not_missed(tmp_path: Path, impatient: None) -> None:
    """Its system answers for it: whoever looks at endless output later finds it waiting."""
    async with serving(tmp_path) as server, connected(server) as client:
        await client.hello()
        await client.call("events.subscribe")
        sent = await until_still(lambda: server.service.sent)
        await trio.sleep(4)  # more than twice as long as one that does not answer
        assert server.service.running == {"events.subscribe"}
        for _ in range(50):
            await client.message()
        await eventually(lambda: server.service.sent > sent)


async def test_a_connection_that_fails_takes_no_other_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in serving one client is logged, and the others do not notice."""

    async def fail(self: Connection) -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("a defect")

    async with serving(tmp_path) as server, connected(server) as client:
        await client.hello()
        with monkeypatch.context() as patched:
            patched.setattr(Connection, "_read_data", fail)
            async with speaking(server) as failing:
                assert await failing.receive_some() == b""
        await client.call("system.health")
        assert "result" in await client.message()


async def test_connections_stay_http_1(tmp_path: Path) -> None:
    """Who wants to upgrade to HTTP/2 is answered by HTTP/1.1, after the guards as anybody else."""
    wish = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"]
    async with serving(tmp_path) as server:
        for token, status in ((server.token, b"200"), ("ark_wrong", b"401")):
            server.token = token
            async with speaking(server) as client:
                await client.send_all(server.head("GET /openapi.json HTTP/1.1", *wish))
                assert (await client.receive_some()).startswith(b"HTTP/1.1 " + status)


async def test_connections_beyond_the_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes when there are too many is let go at once, and later again in."""
    monkeypatch.setattr(connection, "_MOST_CONNECTIONS", 3)
    async with serving(tmp_path) as server:
        async with speaking(server) as one, speaking(server) as two, speaking(server) as three:
            for kept in (one, two, three):  # each is there when it has answered
                await kept.send_all(server.head("GET /v1/health HTTP/1.1"))
                assert await kept.receive_some()
            async with speaking(server) as turned_away:
                with suppress(trio.BrokenResourceError):
                    assert await turned_away.receive_some() == b""
        await eventually(lambda: not Connection._open)
        await answers(server)


async def read_to_end(stream: trio.SocketStream, received: bytearray) -> None:
    while piece := await stream.receive_some():
        received += piece


async def test_http_2_is_not_taken_for_granted(tmp_path: Path) -> None:
    """What begins with its preface is ended, at the most with an answer of HTTP/1.1."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    async with serving(tmp_path) as server:
        for _ in range(20):
            async with speaking(server) as client:
                await client.send_all(preface)
                received = bytearray()
                with suppress(trio.BrokenResourceError):
                    await in_time(partial(read_to_end, client, received), 3)
            assert not received or received.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403"))


def test_a_hypercorn_that_nobody_has_looked_at_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What replaces its parts was made for one version."""
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.19.0")
    with pytest.raises(UnsupportedError, match=r"0\.19\.0") as caught:
        mend_hypercorn()
    assert "0.18" in str(caught.value.hint)
