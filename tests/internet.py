"""Network namespaces that play the internet, for guests of a daemon in a namespace of its own.

Addresses of three kinds are served in it: public ones, which guests may reach, and private and
link-local ones behind the same wire, which they may not, although the daemon's namespace can.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dns.message
import dns.rdatatype
import dns.rrset
from attrs import field, frozen
from pyroute2 import netns

PUBLIC = "93.184.215.14"
OTHER_PUBLIC = "93.184.215.15"
NOT_PUBLIC = ["169.254.169.254", "10.77.0.1", "172.16.9.9", "192.168.77.1", "100.64.0.1"]
# Of the daemon's namespace, as the internet sees it, and of a client in the internet.
DAEMON_SIDE = "203.0.113.2"
OUTSIDE = "198.51.100.7"

_WORLD_SIDE = "203.0.113.1"
_ETH_P_ALL = 3
_SPOKEN_BY_NOBODY = 0x88B5  # an EtherType for local experiments
_SO_RCVBUFFORCE = 33  # beyond the limit for all, as root may
_SETTLE = 0.3


@contextmanager
def namespace(role: str) -> Iterator[str]:
    """Make a network namespace for the length of a block; give its name."""
    name = f"arrakis-test-{secrets.token_hex(4)}-{role}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        ip("netns", "del", name)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Do in a namespace what this thread does in a block: what it opens stays there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        netns.setns(name, flags=0)
        try:
            yield
        finally:
            netns.setns(home)
    finally:
        os.close(home)


def ip(*arguments: str) -> str:
    """Run ``ip``, which must succeed; give its output."""
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def links(name: str | None = None) -> dict[str, dict[str, Any]]:
    """Give the interfaces of a namespace, or of our own, by name."""
    where = ["-n", name] if name else []
    return {link["ifname"]: link for link in json.loads(ip(*where, "-j", "-d", "link"))}


def forwarding_table(name: str) -> set[tuple[str, str]]:
    """Give which address is behind which port, of all bridges of a namespace."""
    done = subprocess.run(["bridge", "-n", name, "-j", "fdb"], check=True, capture_output=True)
    return {(entry["mac"], entry["ifname"]) for entry in json.loads(done.stdout)}


def nft(name: str, *arguments: str) -> str:
    """Run ``nft`` in a namespace."""
    command = ["ip", "netns", "exec", name, "nft", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Service:
    """One port of an address, TCP and UDP. It notes who comes, and tells them who they are.

    Over TCP that is a line, and what is sent after it comes back.
    """

    def __init__(self, name: str, address: str, port: int) -> None:
        self.address = address
        self.port = port
        self.heard: list[tuple[str, str]] = []
        self._open: set[socket.socket] = set()
        note, opened = self.heard.append, self._open

        class Stream(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                note(("tcp", self.client_address[0]))
                opened.add(self.request)
                with contextlib.suppress(OSError):
                    self.request.sendall(f"{self.client_address[0]}\n".encode())
                    while data := self.request.recv(65536):
                        self.request.sendall(data)
                opened.discard(self.request)

        class Datagram(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                note(("udp", self.client_address[0]))
                self.request[1].sendto(self.client_address[0].encode(), self.client_address)

        with inside(name):
            self._servers = [_TcpServer((address, port), Stream)]
            self.port = self._servers[0].server_address[1]
            self._servers.append(_UdpServer((address, self.port), Datagram))
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def say(self, data: bytes) -> None:
        """Send something to all who are connected."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.sendall(data)

    def close(self) -> None:
        """Listen no longer, and end all connections."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class NameServer:
    """A name server that knows some names, and notes which it was asked for."""

    def __init__(self, name: str, address: str, known: Mapping[str, str]) -> None:
        self.asked: list[str] = []
        note = self.asked.append

        class Question(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                query = dns.message.from_wire(self.request[0])
                asked = query.question[0]
                text = asked.name.to_text(omit_final_dot=True).lower()
                note(text)
                answer = dns.message.make_response(query)
                if (found := known.get(text)) and asked.rdtype == dns.rdatatype.A:
                    answer.answer = [dns.rrset.from_text(asked.name, 60, "IN", "A", found)]
                self.request[1].sendto(answer.to_wire(), self.client_address)

        with inside(name):
            self._server = _UdpServer((address, 53), Question)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Answer no longer."""
        self._server.shutdown()
        self._server.server_close()


class _TcpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False


class _UdpServer(socketserver.UDPServer):
    allow_reuse_address = True


@frozen
class Internet:
    """A daemon's namespace, one with servers, and one with a client that is outside of both."""

    daemon: str
    world: str
    outside: str
    stack: contextlib.ExitStack = field(repr=False)

    def serve(self, address: str, port: int = 0, where: str | None = None) -> Service:
        """Listen at an address of the internet, or of another namespace."""
        service = Service(where or self.world, address, port)
        self.stack.callback(service.close)
        return service

    def serve_names(self, address: str, known: Mapping[str, str]) -> NameServer:
        """Answer for names at an address of the internet."""
        server = NameServer(self.world, address, known)
        self.stack.callback(server.close)
        return server

    def connect(self, where: str, address: str, port: int, timeout: float = 10) -> socket.socket:
        """Connect from one of the namespaces."""
        with inside(where):
            return socket.create_connection((address, port), timeout)


@contextmanager
def internet(daemon: str) -> Iterator[Internet]:
    """Connect a daemon's namespace to the internet for the length of a block."""
    with namespace("world") as world, namespace("outside") as outside:
        _wire(daemon, "to-world", f"{DAEMON_SIDE}/24", world, "to-daemon", f"{_WORLD_SIDE}/24")
        try:
            _wire(outside, "to-world", f"{OUTSIDE}/24", world, "to-outside", "198.51.100.1/24")
            for address in (PUBLIC, OTHER_PUBLIC, *NOT_PUBLIC):
                ip("-n", world, "addr", "add", f"{address}/32", "dev", "lo")
            ip("-n", daemon, "route", "add", "default", "via", _WORLD_SIDE)
            ip("-n", outside, "route", "add", "default", "via", "198.51.100.1")
            ip("netns", "exec", world, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            with contextlib.ExitStack() as stack:
                yield Internet(daemon, world, outside, stack)
        finally:
            ip("-n", daemon, "link", "del", "to-world")


def _wire(left: str, name: str, address: str, right: str, far_name: str, far: str) -> None:
    far_end = ["peer", "name", far_name, "netns", right]
    ip("-n", left, "link", "add", name, "type", "veth", *far_end)
    for where, link, own in ((left, name, address), (right, far_name, far)):
        ip("-n", where, "addr", "add", own, "dev", link)
        ip("-n", where, "link", "set", link, "up")


@frozen
class Seen:
    """A frame at an interface; ``leaves`` if the host sends it there."""

    link: str
    leaves: bool
    frame: bytes


class Capture:
    """What passes any interface of a namespace."""

    def __init__(self, name: str) -> None:
        with inside(name):
            kind = socket.htons(_ETH_P_ALL)
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, kind)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 2**26)
        self._socket.settimeout(0.05)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.seen: list[Seen] = []

    def _run(self) -> None:
        while True:
            try:
                frame, origin = self._socket.recvfrom(65536)
            except TimeoutError:
                if self._done.is_set():
                    return
            else:
                self.seen.append(Seen(origin[0], origin[2] == socket.PACKET_OUTGOING, frame))

    def with_mark(self, mark: bytes) -> dict[str, bool]:
        """Say where frames with something in them were seen, and whether leaving."""
        return {seen.link: seen.leaves for seen in self.seen if mark in seen.frame}

    def __enter__(self) -> Capture:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(_SETTLE)
        # Nothing more is to come; what has come is still read, on a busy host too.
        self._socket.bind(("lo", _SPOKEN_BY_NOBODY))
        self._done.set()
        self._thread.join()
        self._socket.close()
