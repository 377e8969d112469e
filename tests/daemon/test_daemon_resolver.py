"""The guests' name server: what it passes on, what it refuses, and whom it tells of it first."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio

from arrakis_rpc.network_api import Egress, parse_target
from arrakisd.host.net.namespace import Namespace, provided
from arrakisd.host.net.resolver import _MOST_CONNECTIONS, Resolver, host_name_servers, matches

_NAMESPACE = f"arrakis-test-dns-{os.getpid()}"
_UPSTREAM = "127.0.3.1"
_SERVER = "127.0.3.2"
_GUEST = "127.0.3.3"
_STRANGER = "127.0.3.4"
# For how long to wait, in seconds, for an answer that comes, and for one that does not.
_PATIENCE = 30
_SILENCE = 1


class Guest:
    """A guest with a policy; remembers what it was let reach."""

    def __init__(self, egress: Egress) -> None:
        self.egress = egress
        self.learnt: list[tuple[int, list[str], int]] = []

    async def learn(self, egress: Egress, number: int, addresses: list[str], seconds: int) -> None:
        assert egress is self.egress
        self.learnt.append((number, addresses, seconds))


class World:
    """A resolver between one guest and an upstream server that knows some names."""

    def __init__(self, namespace: Namespace, guest: Guest) -> None:
        self.namespace = namespace
        self.guest = guest
        self.asked: list[bytes] = []
        self.mutate: Callable[[bytes], bytes] = lambda answer: answer

    async def socket(self, kind: int, address: str, port: int = 0) -> trio.socket.SocketType:
        made = await self.namespace.run(lambda: socket.socket(type=kind))
        made = trio.socket.from_stdlib_socket(made)
        await made.bind((address, port))
        return made

    async def upstream(self) -> None:
        with await self.socket(trio.socket.SOCK_DGRAM, _UPSTREAM, 53) as server:
            while True:
                question, sender = await server.recvfrom(4096)
                self.asked.append(question)
                await server.sendto(self.mutate(known_answer(question)), sender)

    async def upstream_streams(self) -> None:
        listening = await self.socket(trio.socket.SOCK_STREAM, _UPSTREAM, 53)
        listening.listen()

        async def serve(stream: trio.SocketStream) -> None:
            data = await stream.receive_some(4096)
            answer = self.mutate(known_answer(bytes(data[2:])))
            await stream.send_all(struct.pack("!H", len(answer)) + answer)

        await trio.serve_listeners(serve, [trio.SocketListener(listening)])

    async def send(
        self, question: bytes, sender: str = _GUEST, patience: float = _PATIENCE
    ) -> bytes | None:
        with await self.socket(trio.socket.SOCK_DGRAM, sender) as asking:
            await asking.connect((_SERVER, 53))
            with trio.move_on_after(patience), contextlib.suppress(ConnectionRefusedError):
                await asking.send(question)
                return await asking.recv(4096)
        await trio.sleep(0.01)
        return None

    async def send_by_stream(self, *questions: bytes) -> list[bytes]:
        with await self.socket(trio.socket.SOCK_STREAM, _GUEST) as asking:
            await asking.connect((_SERVER, 53))
            stream = trio.SocketStream(asking)
            answers = []
            for question in questions:
                await stream.send_all(struct.pack("!H", len(question)) + question)
                answers.append(bytes(await stream.receive_some(4096))[2:])
            return answers

    async def ask(
        self, name: str, sender: str = _GUEST, patience: float = _PATIENCE
    ) -> dns.message.Message | None:
        query = dns.message.make_query(name, "A")
        answer = await self.send(query.to_wire(), sender, patience)
        if answer is None:
            return None
        message = dns.message.from_wire(answer)
        assert query.is_response(message)
        return message


def known_answer(question: bytes) -> bytes:
    """Two addresses for every name, by way of another name."""
    query = dns.message.from_wire(question)
    answer = dns.message.make_response(query)
    name = query.question[0].name
    answer.answer = [
        dns.rrset.from_text(name, 30, "IN", "CNAME", "cdn.example.net."),
        dns.rrset.from_text("cdn.example.net.", 300, "IN", "A", "93.184.1.1", "93.184.1.2"),
    ]
    return answer.to_wire()


@asynccontextmanager
async def own_namespace() -> AsyncIterator[Namespace]:
    with tempfile.TemporaryDirectory() as directory:
        async with provided(_NAMESPACE, Path(directory, "namespace")) as namespace:
            yield namespace


@asynccontextmanager
async def world(egress: Egress) -> AsyncIterator[World]:
    async with own_namespace() as namespace, trio.open_nursery() as nursery:
        made = World(namespace, Guest(egress))
        nursery.start_soon(made.upstream)
        nursery.start_soon(made.upstream_streams)
        resolver = Resolver(namespace, [_UPSTREAM], {_GUEST: made.guest}.get)
        nursery.start_soon(resolver.run, _SERVER)
        while await made.send(dns.message.make_query("ready.example", "A").to_wire()) is None:
            pass
        made.asked.clear()
        made.guest.learnt.clear()
        yield made
        nursery.cancel_scope.cancel()


def addresses(message: dns.message.Message | None) -> set[str]:
    assert message is not None
    return {record.to_text() for rrset in message.answer for record in rrset} - {"cdn.example.net."}


async def test_passes_on() -> None:
    """A guest with internet gets what the upstream says, under an identifier of its own."""
    async with world(Egress()) as made:
        query = dns.message.make_query("example.com", "A")
        answer = await made.send(query.to_wire())
        assert answer is not None
        assert addresses(dns.message.from_wire(answer)) == {"93.184.1.1", "93.184.1.2"}
        assert answer[:2] == query.to_wire()[:2]
        assert made.asked[0][2:] == query.to_wire()[2:]
        assert made.guest.learnt == []


async def test_identifier() -> None:
    """The identifier upstream is not the guest's: it could not help to spoof an answer."""
    async with world(Egress()) as made:
        question = dns.message.make_query("example.com", "A").to_wire()
        for _ in range(3):
            await made.send(question)
        assert len({asked[:2] for asked in made.asked} | {question[:2]}) > 2


async def test_none() -> None:
    """A guest that may reach nothing is refused, and the upstream does not hear of it."""
    async with world(Egress("none")) as made:
        answer = await made.ask("secret.example.com")
        assert answer is not None
        assert answer.rcode() == dns.rcode.REFUSED
        assert made.asked == []


async def test_allow() -> None:
    """What an allowed name resolves to is allowed first, for each target that it matches."""
    targets = ["203.0.113.0/24", "*.example.com:443", "api.example.com"]
    async with world(Egress("allow", targets)) as made:
        assert addresses(await made.ask("API.Example.com")) == {"93.184.1.1", "93.184.1.2"}
        both = ["93.184.1.1", "93.184.1.2"]
        assert made.guest.learnt == [(1, both, 300), (2, both, 300)]
        for refused in ("example.com", "badexample.com", "example.com.evil.org"):
            answer = await made.ask(refused)
            assert answer is not None
            assert answer.rcode() == dns.rcode.REFUSED
        assert len(made.asked) == 1


async def test_stream() -> None:
    """Questions over TCP are answered over TCP, several on one connection."""
    async with world(Egress()) as made:
        queries = [dns.message.make_query(f"{name}.example", "A") for name in ("one", "two")]
        answers = await made.send_by_stream(*(query.to_wire() for query in queries))
        for query, answer in zip(queries, answers, strict=True):
            assert query.is_response(dns.message.from_wire(answer))


@pytest.mark.parametrize(
    "nonsense", [b"", b"\0", b"\xff" * 12, b"\0" * 600, known_answer], ids=lambda one: str(one)[:12]
)
async def test_nonsense(nonsense: bytes | Callable[[bytes], bytes]) -> None:
    """What is no question gets no answer, and the next question does."""
    async with world(Egress()) as made:
        question = dns.message.make_query("example.com", "A").to_wire()
        sent = nonsense(question) if callable(nonsense) else nonsense
        answer = await made.send(sent, patience=_SILENCE)
        assert answer is None or dns.message.from_wire(answer).rcode() == dns.rcode.NOTIMP
        assert addresses(await made.ask("example.com"))


def many_questions() -> bytes:
    """A question of a dozen long names, from one who takes short answers only."""
    query = dns.message.make_query("example.com", "A", use_edns=0, payload=512)
    labels = [f"{number:x}" * 60 for number in range(12)]
    query.question = [dns.rrset.RRset(dns.name.from_text(one), 1, 1) for one in labels]
    return query.to_wire(max_size=4096)


async def test_questions_that_no_answer_holds() -> None:
    """Whoever asks more at once than he may hear of ends nobody else's name server."""
    async with world(Egress("none")) as made:
        for _ in range(3):
            answer = await made.send(many_questions())
            assert answer is not None
            assert dns.message.from_wire(answer).rcode() == dns.rcode.NOTIMP
        (answer,) = await made.send_by_stream(many_questions())
        assert dns.message.from_wire(answer).rcode() == dns.rcode.NOTIMP


async def test_a_defect_in_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody thought of costs its question only, and its connection."""
    async with world(Egress()) as made:
        with monkeypatch.context() as broken:
            broken.setattr(Resolver, "_answer_query", None)
            assert await made.ask("example.com", patience=_SILENCE) is None
            query = dns.message.make_query("example.com", "A").to_wire()
            assert await made.send_by_stream(query) == [b""]
        assert addresses(await made.ask("example.com"))


async def test_connections_that_are_gone_at_once() -> None:
    """Whoever connects and resets before he is asked who he is ends nobody's name server."""
    async with world(Egress()) as made:
        for _ in range(20):
            with await made.socket(trio.socket.SOCK_STREAM, _GUEST) as asking:
                await asking.connect((_SERVER, 53))
                linger = struct.pack("ii", 1, 0)
                asking.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, linger)
        assert addresses(await made.ask("example.com"))


async def test_connections_of_one_guest() -> None:
    """Only some at a time are kept; the others are ended, and a later one is served."""
    async with world(Egress()) as made:
        with contextlib.ExitStack() as held:
            kept = []
            for _ in range(_MOST_CONNECTIONS + 5):
                one = held.enter_context(await made.socket(trio.socket.SOCK_STREAM, _GUEST))
                await one.connect((_SERVER, 53))
                kept.append(one)
            with trio.fail_after(_PATIENCE):
                for one in kept[_MOST_CONNECTIONS:]:
                    assert await one.recv(1) == b""
        query = dns.message.make_query("example.com", "A").to_wire()
        with trio.fail_after(_PATIENCE):
            while await made.send_by_stream(query) == [b""]:
                pass


async def test_strangers() -> None:
    """Who is no guest gets no answer."""
    async with world(Egress()) as made:
        assert await made.ask("example.com", _STRANGER, _SILENCE) is None


async def test_spoofed() -> None:
    """An answer to another question than the one that was asked never reaches the guest."""
    async with world(Egress()) as made:
        made.mutate = lambda answer: b"\0\0" + answer[2:]
        answer = await made.ask("example.com", patience=_SILENCE)
        assert answer is None  # still waiting for the true one
        query = dns.message.make_query("example.com", "A")
        (wire,) = await made.send_by_stream(query.to_wire())
        assert dns.message.from_wire(wire).rcode() == dns.rcode.SERVFAIL


async def test_upstream_down() -> None:
    """Without an upstream that answers, the guest is told so."""
    async with own_namespace() as namespace, trio.open_nursery() as nursery:
        made = World(namespace, Guest(Egress()))
        resolver = Resolver(namespace, [_UPSTREAM], {_GUEST: made.guest}.get)
        nursery.start_soon(resolver.run, _SERVER)
        answer = None
        while answer is None:
            answer = await made.ask("example.com")
        assert answer.rcode() == dns.rcode.SERVFAIL
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("target", "name", "expected"),
    [
        ("example.com", "example.com", True),
        ("example.com", "www.example.com", False),
        ("Example.COM.", "example.com", True),
        ("*.example.com", "www.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "badexample.com", False),
        ("10.0.0.0/8", "10.0.0.1", False),
    ],
)
def test_matches(target: str, name: str, expected: bool) -> None:
    """A name matches itself, and with a star what is below it."""
    assert matches(parse_target(target), name) is expected


def test_host_name_servers(tmp_path: Path) -> None:
    """The host's own name servers are read, those of IPv6 left out."""
    file = tmp_path / "resolv.conf"
    file.write_text("# nameserver 9.9.9.9\nsearch x\nnameserver 1.2.3.4\nnameserver ::1\n")
    assert host_name_servers(file) == ["1.2.3.4"]
    assert host_name_servers(tmp_path / "none") == []
