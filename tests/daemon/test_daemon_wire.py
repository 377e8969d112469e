"""Clients that break the rules of the socket, against a real daemon."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial

import msgpack
import pytest
import trio
import trio.testing
from raw_client import RawClient
from real_daemon import Daemon

from arrakis import SandboxManager
from arrakis_rpc.framing import MAX_FRAME, encode_frame
from arrakisd.rpc_session import RpcSessions


@pytest.fixture
def client(daemon: Daemon) -> Iterator[RawClient]:
    """A raw client of a daemon that is none the worse for it afterwards."""
    with daemon.leaves_nothing():
        client = RawClient(daemon.socket)
        yield client
        client.close()
        with SandboxManager(socket=daemon.socket) as manager:
            assert manager.health().status == "healthy"


def frame(body: bytes) -> bytes:
    """Put the length in front of a body."""
    return struct.pack(">I", len(body)) + body


DEEP = b"\x91" * 100 + b"\xc0"
DEEP_ENVELOPE = (
    b"\x84" + b"".join(msgpack.packb(text) for text in ("jsonrpc", "2.0", "id")) + b"\x07"
    + msgpack.packb("method") + msgpack.packb("system.health") + msgpack.packb("params")
    + b"\x81\xa1x" + DEEP
)  # fmt: skip

BROKEN = {
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "zeros": bytes(64),
    "empty frame": frame(b""),
    "no msgpack": frame(b"\xc1\xc1\xc1"),
    "cut value": frame(b"\x92\x01"),
    "two values": frame(b"\x01\x02"),
    "no envelope": frame(msgpack.packb([1, 2, 3])),
    "wrong version": frame(msgpack.packb({"jsonrpc": "1.0", "id": 2, "method": "m", "params": {}})),
    "id is text": frame(msgpack.packb({"jsonrpc": "2.0", "id": "2", "method": "m", "params": {}})),
    "params is a list": frame(
        msgpack.packb({"jsonrpc": "2.0", "id": 2, "method": "m", "params": []})
    ),
    "batch": frame(msgpack.packb([{"jsonrpc": "2.0", "id": 2, "method": "m", "params": {}}])),
    "an answer": frame(msgpack.packb({"jsonrpc": "2.0", "id": 2, "result": {}})),
    "extension": frame(msgpack.packb(msgpack.ExtType(5, b"x"))),
    "oversized": struct.pack(">I", MAX_FRAME + 1),
    "huge": b"\xff\xff\xff\xff",
    "array of 4 G": frame(b"\xdd\xff\xff\xff\xff"),
    "nested": frame(DEEP),
    "nested in an envelope": frame(DEEP_ENVELOPE),
    "nested forty thousand times": frame(b"\x91" * 40_000),
    "number as a key": frame(b"\x81\x01\x02"),
    "stream of no call": encode_frame(
        {"jsonrpc": "2.0", "method": "stream.data", "params": {"id": 9, "channel": "x"}}
    ),
    "credit of no call": encode_frame(
        {
            "jsonrpc": "2.0",
            "method": "stream.credit",
            "params": {"id": 9, "channel": "x", "size": 1},
        }
    ),
}


@pytest.mark.parametrize("greeted", [False, True], ids=["at once", "after hello"])
@pytest.mark.parametrize("nonsense", BROKEN.values(), ids=BROKEN.keys())
def test_nonsense(client: RawClient, daemon: Daemon, nonsense: bytes, greeted: bool) -> None:
    """Bytes that are no frame of a call end their connection at once, and no other."""
    with SandboxManager(socket=daemon.socket) as other:
        other.health()
        if greeted:
            client.hello()
        client.send(nonsense)
        assert client.is_closed()
        assert other.health().status == "healthy"


def test_calls_without_hello(client: RawClient) -> None:
    """Whoever does not greet first is told to, whatever he asks for."""
    client.call(1, "system.health")
    error = client.answer()["error"]
    assert "system.hello" in error["message"]
    client.call(2, "vm.destroy_all")
    assert "system.hello" in client.answer()["error"]["message"]


def test_hello_of_another_time(client: RawClient) -> None:
    """A client that speaks no common version of the protocol is told both sides' versions."""
    client.call(1, "system.hello", {"versions": [99, 98], "client": "test"})
    error = client.answer()["error"]
    assert "version 1" in error["message"]
    assert "[99, 98]" in error["message"]
    assert error["data"]["hint"]


@pytest.mark.parametrize(
    ("method", "params", "named"),
    [
        ("no.such", {}, "no.such"),
        ("__class__", {}, "__class__"),
        ("system.hello.__init__", {}, "system.hello.__init__"),
        ("agent.hello", {"versions": [1], "token": b"0" * 32}, "agent.hello"),
        ("identity.apply", {}, "identity.apply"),
        ("vm.start", {}, "name"),
        ("vm.start", {"name": 1}, "name"),
        ("vm.start", {"name": "a", "vcpus": "2"}, "vcpus"),
        ("vm.start", {"name": "a", "vcpus": 2.0}, "vcpus"),
        ("vm.start", {"name": "a", "vcpus": True}, "vcpus"),
        ("vm.start", {"name": "a", "vcpus": 2**70 % 2**63}, "vcpus"),
        ("vm.start", {"name": "a", "memory_mib": -1}, "memory_mib"),
        ("vm.start", {"name": "a", "cpus": 2}, "cpus"),
        ("vm.info", {"name": None}, "name"),
        ("vm.fork", {"name": "a", "count": 0}, "count"),
        ("vm.fork", {"name": "a", "count": 65}, "count"),
        ("vm.fork", {"name": "a", "names": "bc"}, "names"),
        ("snapshot.create", {"vm": "a", "id": "A"}, "id"),
        ("snapshot.create", {"vm": "a", "label": "x" * 201}, "label"),
        ("exec.run", {"vm": "a", "args": {}}, "argv"),
        ("exec.run", {"vm": "a", "args": {"argv": "ls"}}, "argv"),
        ("exec.run", {"vm": "a", "args": {"argv": ["ls"], "timeout": "1"}}, "timeout"),
        ("exec.run", {"vm": "a", "args": {"argv": ["a\0b"]}}, "NUL"),
        ("file.read", {"vm": "a", "args": {"path": ""}}, "path"),
        ("file.read", {"vm": "a", "args": {"path": "x", "offset": -1}}, "offset"),
        ("image.build", {"name": "a", "dockerfile": "../../etc/passwd"}, "dockerfile"),
    ],
)
def test_bad_calls(client: RawClient, method: str, params: object, named: str) -> None:
    """A call that cannot be right is refused by the name of what is wrong; the next one works."""
    client.hello()
    client.call(2, method, params)
    error = client.answer()["error"]
    assert error["code"] in (-32601, -32602)
    assert named in error["message"]
    client.call(3, "system.health")
    assert client.answer()["result"]["status"] == "healthy"


@pytest.mark.parametrize(
    "name", ["../x", "a/b", ".", "..", "", "/etc", "z" * 64, "a b", "a\0", "ä", "-a", ".a", "a..b"]
)
def test_names_that_are_paths(client: RawClient, name: str) -> None:
    """A name that is a path, or hides one, is refused wherever a name is taken."""
    client.hello()
    calls = [
        ("vm.start", {"name": name}),
        ("vm.info", {"name": name}),
        ("vm.destroy", {"name": name}),
        ("vm.fork", {"name": "a", "names": [name]}),
        ("snapshot.create", {"vm": name}),
        ("snapshot.create", {"vm": "a", "id": name}),
        ("snapshot.delete", {"id": name}),
        ("vm.start", {"name": "a", "snapshot": name}),
        ("vm.start", {"name": "a", "image": name}),
        ("exec.run", {"vm": name, "args": {"argv": ["true"]}}),
    ]
    for number, (method, params) in enumerate(calls, 2):
        client.call(number, method, params)
        answer = client.answer()
        assert answer["error"]["code"] == -32602, (method, params)


def test_many_connections(daemon: Daemon) -> None:
    """More connections than are allowed are refused, and go with their clients."""
    with daemon.leaves_nothing():
        first = RawClient(daemon.socket)
        first.hello()  # before it is late for that
        clients = [first, *(RawClient(daemon.socket) for _ in range(519))]
        assert clients[-1].is_closed()
        first.call(2, "system.health")
        assert first.answer()["result"]["status"] == "healthy"
        for client in clients:
            client.close()
    with SandboxManager(socket=daemon.socket) as manager:
        assert manager.health().status == "healthy"


def test_calls_in_a_heap(client: RawClient) -> None:
    """Many calls at once are all answered, though their client reads none until the end."""
    client.hello()
    for number in range(2, 252):
        client.call(number, "system.health")
    answers = [client.answer() for _ in range(250)]
    assert sorted(answer["id"] for answer in answers) == list(range(2, 252))
    assert all("result" in answer for answer in answers)


def test_too_many_calls(client: RawClient) -> None:
    """More calls at once than the protocol allows end the connection."""
    client.hello()
    for number in range(2, 2 + 257):
        client.call(number, "events.subscribe")
    assert client.is_closed()


def test_client_that_never_reads(client: RawClient, daemon: Daemon) -> None:
    """A client that asks and never reads costs bounded memory, and holds up nobody."""
    client.hello()
    before = daemon.memory_mib()
    client._socket.settimeout(0.5)
    sent = 0
    try:
        for number in range(2, 100_000):
            client.call(number, "system.doctor")
            sent = number
    except OSError:
        pass  # it was cut off, or no longer listened to
    assert sent > 100
    assert daemon.memory_mib() < before + 64


async def test_slow_loris(autojump_clock: trio.testing.MockClock) -> None:
    """Who does not greet in time, or leaves a frame half sent, is dropped; who waits is not."""
    hello = {"versions": [1], "client": "x"}
    message = {"jsonrpc": "2.0", "id": 1, "method": "system.hello", "params": hello}
    greeting = encode_frame(message)

    class Greeter:
        async def handle(self, method: str, params: object, call: object) -> object:
            return {"version": 1, "daemon": "test"}

    async def is_dropped(first: bytes, pieces: bytes = b"") -> bool:
        stream, far = trio.testing.memory_stream_pair()
        nursery.start_soon(sessions.serve, far, "test")
        async with stream:
            await stream.send_all(first)
            with trio.move_on_after(150) as scope:
                for piece in pieces:
                    await trio.sleep(5)
                    try:
                        await stream.send_all(bytes([piece]))
                    except trio.BrokenResourceError:
                        return True
                while await stream.receive_some():
                    pass
            return not scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        sessions = RpcSessions(Greeter())  # type: ignore[arg-type]
        results: dict[str, bool] = {}

        async def look(name: str, *script: bytes) -> None:
            results[name] = await is_dropped(*script)

        async with trio.open_nursery() as clients:
            for script in (
                partial(look, "silent", b""),
                partial(look, "half a greeting", greeting[:9]),
                partial(look, "half a length", greeting + b"\0\0"),
                partial(look, "half a frame", greeting + greeting[:20]),
                partial(look, "byte by byte", greeting + b"\0\1\0\0", b"\x81" * 1000),
                partial(look, "patient", greeting),
            ):
                clients.start_soon(script)
        nursery.cancel_scope.cancel()
    assert results.pop("patient") is False
    assert all(results.values()), results
