"""The protocol over WebSockets: who gets in, and what no client can do to the daemon."""

from __future__ import annotations

import contextlib
import gc
import resource
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from http_serving import Client, RefusedError, answers, connected, eventually, serving, until_still
from real_daemon import SLACK
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Ping,
    TextMessage,
)

from arrakisd import rpc_session
from arrakisd.http import websocket as websocket_module
from arrakisd.http.connection import Connection

MIB = 2**20


async def test_who_has_a_token_is_served_as_somebody_from_elsewhere(tmp_path: Path) -> None:
    """A caller is known by address and the name of the token, and is not local."""
    async with serving(tmp_path) as server, connected(server) as client:
        await client.hello()
        await client.call("system.health")
        result = (await client.message())["result"]
        assert result == {"caller": "http 127.0.0.1 one", "is_local": False}


@pytest.mark.parametrize(
    ("headers", "host", "path", "status"),
    [
        ({}, "", "/v1/rpc", 401),
        ({"Authorization": "Bearer ark_wrong"}, "", "/v1/rpc", 401),
        ({"Authorization": "Bearer"}, "", "/v1/rpc", 401),
        ({"Authorization": "Digest TOKEN"}, "", "/v1/rpc", 401),
        ({}, "", "/v1/rpc?token=TOKEN", 401),
        ({"Authorization": "Bearer TOKEN", "Origin": "https://evil.example"}, "", "/v1/rpc", 403),
        ({"Authorization": "Bearer TOKEN", "Origin": "null"}, "", "/v1/rpc", 403),
        ({"Authorization": "Bearer TOKEN"}, "evil.example:7000", "/v1/rpc", 403),
        ({"Authorization": "Bearer TOKEN"}, "", "/v1/other", 404),
        ({"Authorization": "Bearer TOKEN"}, "", "/v1/health", 404),
    ],
)
async def test_nobody_else_gets_in(
    tmp_path: Path, headers: dict[str, str], host: str, path: str, status: int
) -> None:
    """No token, a wrong one, one in the URL, a foreign page or host name: all before the accept."""
    async with serving(tmp_path) as server:
        filled = {name: value.replace("TOKEN", server.token) for name, value in headers.items()}
        path = path.replace("TOKEN", server.token)
        with pytest.raises(RefusedError) as caught:
            async with connected(server, filled, host=host, path=path):
                pass
        assert caught.value.args[0] == status
        assert server.token not in caught.value.args[1]
        assert server.sessions.connections == 0


async def test_revoking_a_token_ends_its_connections_and_calls(tmp_path: Path) -> None:
    """At once: what runs for it is cancelled, the connection ends, and it opens none any more."""
    async with serving(tmp_path) as server:
        other = await server.tokens.create("other")
        kept = {"Authorization": f"Bearer {other}"}
        async with connected(server) as client, connected(server, kept) as stays:
            await stays.hello()
            await client.hello()
            await client.call("vm.destroy_all")
            await eventually(lambda: "vm.destroy_all" in server.service.running)
            await server.tokens.revoke("one")
            await client.wait_closed()
            assert not server.service.running
            with pytest.raises(RefusedError) as caught:
                async with connected(server):
                    pass
            assert caught.value.args[0] == 401
            await stays.call("system.health")
            assert "result" in await stays.message()


async def test_revoking_cuts_off_who_does_not_read(tmp_path: Path) -> None:
    """Even with its sending blocked, nothing more is done for a token that was revoked."""
    async with serving(tmp_path) as server:
        other = await server.tokens.create("other")
        async with connected(server) as client:
            await client.hello()
            await client.call("events.subscribe")
            await until_still(lambda: server.service.sent)
            await server.tokens.revoke("one")
            await eventually(lambda: not server.service.running)
            server.token = other
            await answers(server)


async def test_bytes_may_be_cut_anywhere(tmp_path: Path) -> None:
    """Messages and fragments hold parts of frames, several of them, or nothing at all."""
    async with serving(tmp_path) as server, connected(server) as client:
        greeting = client.frame("system.hello", versions=[1], client="test")
        calls = b"".join(client.frame("system.health") for _ in range(20))
        for byte in greeting:
            await client.send(bytes([byte]))
            await client.send(b"")
        event = BytesMessage(data=calls[:50], message_finished=False)
        await client.stream.send_all(client.ws.send(event))
        await client.stream.send_all(client.ws.send(Ping()))
        await client.send(calls[50:])
        ids = {(await client.message())["id"] for _ in range(21)}
        assert ids == set(range(1, 22))


async def test_large_answers_come_whole(tmp_path: Path) -> None:
    """What is longer than one message is several."""
    async with serving(tmp_path) as server, connected(server) as client:
        await client.hello()
        await client.call("image.list")
        assert len((await client.message())["result"]["images"]) == 900_000


@pytest.mark.parametrize("how", ["close", "abort", "half", "polite"])
async def test_client_that_goes_away_cancels_its_calls(tmp_path: Path, how: str) -> None:
    """Within a second, however it goes, and also while it leaves unread what it gets."""
    async with serving(tmp_path) as server, connected(server) as client:
        await client.hello()
        await client.call("vm.destroy_all")
        await client.call("exec.run", vm="box", args={})
        await until_still(lambda: server.service.sent)
        if how == "polite":
            await client.stream.send_all(client.ws.send(CloseConnection(code=1000)))
            await client.wait_closed()
        elif how == "half":
            await client.stream.send_eof()
        elif how == "abort":
            linger = struct.pack("ii", 1, 0)
            client.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await client.stream.aclose()
        else:
            await client.stream.aclose()
        await eventually(lambda: not server.service.running)
        await eventually(lambda: server.sessions.connections == 0)
        await eventually(lambda: not Connection._open, 3)


@pytest.mark.parametrize("method", ["events.subscribe", "image.list"])
async def test_client_that_never_reads_holds_little(tmp_path: Path, method: str) -> None:
    """What it leaves unread is bounded, be it notes or answers, and others are served."""
    async with serving(tmp_path) as server:
        await answers(server)
        gc.collect()
        before = _memory()
        async with connected(server) as client:
            await client.hello()
            with trio.move_on_after(10):
                try:
                    for _ in range(250 if method == "image.list" else 5):
                        await client.call(method)
                except trio.BrokenResourceError:
                    pass  # cut off, which is right as well
            await trio.sleep(1)
            assert _memory() - before < 192 * MIB
            await answers(server)


def _memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


Send = Callable[[Client], Awaitable[None]]


async def _text(client: Client) -> None:
    await client.stream.send_all(client.ws.send(TextMessage(data="hello")))


async def _garbage(client: Client) -> None:
    await client.send(b"GET / HTTP/1.1\r\n\r\n")


async def _too_long(client: Client) -> None:
    # Piece by piece: the memory that is measured is this client's, too.
    await client.stream.send_all(b"\x82\xff" + (100 * MIB).to_bytes(8, "big") + bytes(4))
    with contextlib.suppress(trio.BrokenResourceError):
        for _ in range(100 * MIB // 65536):
            await client.stream.send_all(bytes(65536))


async def _in_fragments_for_ever(client: Client) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        for _ in range(3000):
            piece = BytesMessage(data=bytes(65536), message_finished=False)
            await client.stream.send_all(client.ws.send(piece))


async def _announced(client: Client) -> None:
    await client.stream.send_all(b"\x82\xff" + (2**62).to_bytes(8, "big") + bytes(4))
    with contextlib.suppress(trio.BrokenResourceError):
        for _ in range(3000):
            await client.stream.send_all(bytes(65536))


async def _unmasked(client: Client) -> None:
    await client.stream.send_all(b"\x82\x05hello")


async def _reserved(client: Client) -> None:
    await client.stream.send_all(b"\xf2\x80" + bytes(4))


async def _compressed(client: Client) -> None:
    bomb = zlib.compress(bytes(64 * MIB), wbits=-15)
    length = len(bomb).to_bytes(8, "big")
    await client.stream.send_all(b"\xc2\xff" + length + bytes(4) + bomb)


async def _endless(client: Client) -> None:
    while True:
        await client.send(b"\xff" * MIB)


async def _huge_frame(client: Client) -> None:
    await client.send((2**30).to_bytes(4, "big") + bytes(1000))


async def _nested(client: Client) -> None:
    body = b"\x91" * 1000 + b"\xc0"
    await client.send(len(body).to_bytes(4, "big") + body)


@pytest.mark.parametrize(
    "hostile",
    [
        _text,
        _garbage,
        _too_long,
        _in_fragments_for_ever,
        _announced,
        _unmasked,
        _reserved,
        _compressed,
        _huge_frame,
        _nested,
    ],
    ids=lambda hostile: hostile.__name__.strip("_"),
)
@pytest.mark.parametrize("greeted", [False, True])
async def test_hostile_bytes_end_the_connection(
    tmp_path: Path, hostile: Send, greeted: bool
) -> None:
    """Whatever is not the protocol ends its own connection, in bounded memory, and no other."""
    async with serving(tmp_path) as server:
        await answers(server)
        before = _memory()
        async with connected(server, deflate=hostile is _compressed) as client:
            assert not client.extensions
            if greeted:
                await client.hello()
                await client.call("vm.destroy_all")
            with contextlib.suppress(trio.BrokenResourceError):
                await hostile(client)
            await client.wait_closed(5)
            assert _memory() - before < 32 * MIB
            await answers(server)
        await eventually(lambda: not server.service.running)
        await eventually(lambda: server.sessions.connections == 0)


async def test_who_sends_on_is_cut_off_though_nobody_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection whose session has ended ends, also when its reader waits for no one."""
    monkeypatch.setattr(websocket_module, "_REST_DEADLINE", 0)
    async with serving(tmp_path) as server:
        async with connected(server) as client:
            await client.hello()
            with trio.fail_after(SLACK * 20), pytest.raises(trio.BrokenResourceError):
                await _endless(client)
        await eventually(lambda: server.sessions.connections == 0)
        await answers(server)


async def test_a_flood_of_pings_is_no_way_to_fill_memory(tmp_path: Path) -> None:
    """Pings are answered as fast as the answers are taken."""
    async with serving(tmp_path) as server, connected(server) as client:
        await client.hello()
        before = _memory()
        pings = b"".join(client.ws.send(Ping(payload=bytes(100))) for _ in range(1000))
        with trio.move_on_after(2):
            while True:
                await client.stream.send_all(pings)
        assert _memory() - before < 16 * MIB
        await answers(server)
        await client.stream.aclose()
        await eventually(lambda: server.sessions.connections == 0)


async def test_slow_and_idle_clients_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not greet, stops in a frame, or is idle for long, is; who has a call is not."""
    monkeypatch.setattr(rpc_session, "_FRAME_DEADLINE", 0.2)
    monkeypatch.setattr(websocket_module, "_LONGEST_IDLE", 0.8)
    async with serving(tmp_path) as server:
        with monkeypatch.context() as patched:  # the others greet, however long that takes
            patched.setattr(rpc_session, "_HELLO_DEADLINE", 0.3)
            async with connected(server) as silent:
                await silent.wait_closed(2)
        async with connected(server) as halting:
            await halting.hello()
            await halting.send(b"\0\0")
            await halting.wait_closed(2)
        async with connected(server) as idle:
            await idle.hello()
            await idle.wait_closed(3)
        async with connected(server) as busy:
            await busy.hello()
            await busy.call("vm.destroy_all")
            with pytest.raises(trio.TooSlowError):
                await busy.wait_closed(2)
