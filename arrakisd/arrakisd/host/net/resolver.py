"""The guests' name server, on the bridge's own address.

It passes questions on to the host's name servers, and it is where an allow-list of names is
enforced: other names are refused, and what an allowed one resolves to is let through the
packet filter before the guest hears of it.
"""

from __future__ import annotations

import copy
import ipaddress
import secrets
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import structlog
import trio
from attrs import frozen

from arrakis_rpc.network_api import Egress, Target

from .namespace import Namespace
from .ruleset import DNS_PORT

_RESOLV_CONF = Path("/etc/resolv.conf")
_UPSTREAM_DEADLINE = 3.0
_IDLE_DEADLINE = 10.0
_LONGEST_DATAGRAM = 4096
# Of one guest at a time; what comes on top is dropped, as a busy name server would.
_MOST_QUESTIONS = 32
_MOST_CONNECTIONS = 8
# An address stays allowed at least so long: programs ask once and connect a little later.
_SHORTEST_LEASE = 60
_LONGEST_LEASE = 86400

log = structlog.get_logger()


@frozen
class _Message:
    """A message as it is on the wire, and read."""

    wire: bytes
    read: dns.message.Message


_Ask = Callable[[_Message, str], Awaitable[_Message]]


class Client(Protocol):
    """A guest that may ask."""

    egress: Egress

    async def learn(self, egress: Egress, number: int, addresses: list[str], seconds: int) -> None:
        """Let it reach what the n-th target of its policy was resolved to."""


def host_name_servers(file: Path = _RESOLV_CONF) -> list[str]:
    """Give the IPv4 name servers that the host itself asks."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    named = [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]
    return [server for server in named if _is_ipv4(server)]


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def matches(target: Target, name: str) -> bool:
    """Whether a name, in lower case and without a final dot, is what a target allows."""
    if target.domain is None:
        return False
    if target.domain.startswith("*."):
        return name.endswith(target.domain[1:])
    return name == target.domain


class Resolver:
    """Answers guests that ``find`` knows by their address."""

    def __init__(
        self,
        namespace: Namespace,
        upstreams: Sequence[str],
        find: Callable[[str], Client | None],
    ) -> None:
        self._namespace = namespace
        self._upstreams = upstreams
        self._find = find
        self._asking: Counter[str] = Counter()
        self._connected: Counter[str] = Counter()

    async def run(
        self, address: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve on an address, until cancelled. Raises `OSError` if somebody else does."""
        datagrams = await self._socket(socket.SOCK_DGRAM)
        listening = await self._socket(socket.SOCK_STREAM)
        with datagrams, listening:
            await datagrams.bind((address, DNS_PORT))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await listening.bind((address, DNS_PORT))
            listening.listen()
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve_datagrams, datagrams, nursery)
                listener = trio.SocketListener(listening)
                await trio.serve_listeners(self._serve_stream, [listener])

    async def _socket(self, kind: int) -> trio.socket.SocketType:
        made = await self._namespace.run(lambda: socket.socket(socket.AF_INET, kind))
        return trio.socket.from_stdlib_socket(made)

    async def _serve_datagrams(
        self, datagrams: trio.socket.SocketType, nursery: trio.Nursery
    ) -> None:
        while True:
            try:
                question, sender = await datagrams.recvfrom(_LONGEST_DATAGRAM)
            except OSError as error:  # that a guest is gone is told to whoever reads next
                log.debug("name server", reason=str(error))
                continue
            if self._asking[sender[0]] < _MOST_QUESTIONS:
                nursery.start_soon(self._answer_datagram, datagrams, question, sender)

    async def _answer_datagram(
        self, datagrams: trio.socket.SocketType, question: bytes, sender: tuple[str, int]
    ) -> None:
        try:
            answer = await self._answer(question, sender[0], self._ask_by_datagram)
            if answer is not None:
                await datagrams.sendto(answer, sender)
        except OSError as error:
            log.debug("name server", reason=str(error))
        except Exception:  # what a guest sends must end nothing but its own question
            log.exception("a question was not answered", sender=sender[0])

    async def _serve_stream(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                sender = stream.socket.getpeername()[0]
                if self._connected[sender] >= _MOST_CONNECTIONS:
                    return
                self._connected[sender] += 1
                try:
                    await self._serve_sender(stream, sender)
                finally:
                    _take_one(self._connected, sender)
            except (EOFError, OSError, trio.BrokenResourceError, trio.TooSlowError):
                return  # it was even quicker to go than to be asked who it is, perhaps
            except Exception:  # what a guest sends must end nothing but its own connection
                log.exception("a question was not answered")

    async def _serve_sender(self, stream: trio.SocketStream, sender: str) -> None:
        while self._asking[sender] < _MOST_QUESTIONS:
            with trio.fail_after(_IDLE_DEADLINE):
                question = await _receive(stream)
            answer = await self._answer(question, sender, self._ask_by_stream)
            if answer is None:
                return
            with trio.fail_after(_IDLE_DEADLINE):
                await stream.send_all(struct.pack("!H", len(answer)) + answer)

    async def _answer(self, question: bytes, sender: str, ask: _Ask) -> bytes | None:
        """Give the answer to a question; None to a sender or a message that deserves none."""
        client = self._find(sender)
        if client is None:
            return None
        try:
            query = dns.message.from_wire(question)
        except (dns.exception.DNSException, ValueError, struct.error):
            return None
        if query.flags & dns.flags.QR:
            return None
        if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
            return _refusal(query, dns.rcode.NOTIMP)
        self._asking[sender] += 1
        try:
            return await self._answer_query(query, question, client, ask)
        finally:
            _take_one(self._asking, sender)

    async def _answer_query(
        self,
        query: dns.message.Message,
        question: bytes,
        client: Client,
        ask: _Ask,
    ) -> bytes:
        egress = client.egress
        name = query.question[0].name.to_text(omit_final_dot=True).lower()
        allowed = [number for number, one in enumerate(egress.targets) if matches(one, name)]
        if egress.mode != "internet" and not allowed:
            return _refusal(query, dns.rcode.REFUSED)
        answer = await self._ask_upstreams(_under_another_id(query, question), ask)
        if answer is None:
            return _refusal(query, dns.rcode.SERVFAIL)
        if allowed and not await _admit(client, egress, allowed, answer.read):
            return _refusal(query, dns.rcode.SERVFAIL)
        return question[:2] + answer.wire[2:]

    async def _ask_upstreams(self, question: _Message, ask: _Ask) -> _Message | None:
        for upstream in self._upstreams:
            try:
                with trio.fail_after(_UPSTREAM_DEADLINE):
                    return await ask(question, upstream)
            except (EOFError, OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
                log.info("a name server does not answer", server=upstream, reason=repr(error))
        return None

    async def _ask_by_datagram(self, question: _Message, upstream: str) -> _Message:
        with await self._socket(socket.SOCK_DGRAM) as asking:
            await asking.connect((upstream, DNS_PORT))
            await asking.send(question.wire)
            while True:
                if answer := _answer_in(await asking.recv(_LONGEST_DATAGRAM), question):
                    return answer

    async def _ask_by_stream(self, question: _Message, upstream: str) -> _Message:
        with await self._socket(socket.SOCK_STREAM) as asking:
            await asking.connect((upstream, DNS_PORT))
            stream = trio.SocketStream(asking)
            await stream.send_all(struct.pack("!H", len(question.wire)) + question.wire)
            if answer := _answer_in(await _receive(stream), question):
                return answer
            raise EOFError


async def _receive(stream: trio.SocketStream) -> bytes:
    (length,) = struct.unpack("!H", await _exactly(stream, 2))
    return await _exactly(stream, length)


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _under_another_id(query: dns.message.Message, question: bytes) -> _Message:
    """Make a question of our own: a guest must not choose what spoofed answers have to guess."""
    renamed = copy.copy(query)
    renamed.id = secrets.randbits(16)
    return _Message(struct.pack("!H", renamed.id) + question[2:], renamed)


def _answer_in(data: bytes, question: _Message) -> _Message | None:
    try:
        message = dns.message.from_wire(data, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError, struct.error):
        return None
    return _Message(data, message) if question.read.is_response(message) else None


async def _admit(
    client: Client, egress: Egress, numbers: list[int], answer: dns.message.Message
) -> bool:
    found = [one for one in answer.answer if one.rdtype == dns.rdatatype.A]
    addresses = sorted({record.address for one in found for record in one})
    if not addresses:
        return True
    lease = min(_LONGEST_LEASE, max(_SHORTEST_LEASE, *(one.ttl for one in found)))
    try:
        for number in numbers:
            await client.learn(egress, number, addresses, lease)
    except OSError as error:
        log.warning("resolved addresses could not be allowed", reason=str(error))
        return False
    return True


def _take_one(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


def _refusal(query: dns.message.Message, code: dns.rcode.Rcode) -> bytes:
    answer = dns.message.make_response(query, recursion_available=True)
    if len(query.question) != 1:
        answer.question = []  # together they may be longer than an answer to the asker may be
    answer.set_rcode(code)
    return answer.to_wire()
