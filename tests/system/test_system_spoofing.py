"""Frames that a guest's root can send, and that must not get further than its own tap."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from frames import (
    ALL_NODES,
    ALL_NODES_MAC,
    ARP,
    BROADCAST,
    ICMP,
    IPV4,
    IPV6,
    REPLY,
    REQUEST,
    TCP,
    UDP,
    VLAN,
    arp,
    ethernet,
    ipv4,
    ipv6,
    ping,
    router_advertisement,
    syn,
    udp,
    udp6,
)
from guest_network import LISTEN, place_of, send_frames, siblings
from internet import Capture, Service, forwarding_table, inside, ip
from real_daemon import Daemon, namespace_of

from arrakis import Sandbox, SandboxManager

pytestmark = pytest.mark.vm

BRIDGE = "arrakis0"
HONEST = b"an honest datagram"
SPOOFED = b"a spoofed datagram"
# Bridges take frames for these apart before anything else: 0 is spanning tree's.
LINK_LOCAL = [f"01:80:c2:00:00:{last:02x}" for last in range(16)]
STRANGE_MAC = "02:66:66:66:66:66"


class Six:
    """A UDP port that listens at all addresses of IPv6."""

    def __init__(self, namespace: str) -> None:
        with inside(namespace):
            self._socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._socket.bind(("::", 0))
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]

    def heard(self) -> list[bytes]:
        datagrams = []
        with contextlib.suppress(BlockingIOError):
            while True:
                datagrams.append(self._socket.recv(2000))
        return datagrams

    def close(self) -> None:
        self._socket.close()


class Two:
    """A guest that misbehaves, and one that listens; and where they are."""

    def __init__(self, one: Sandbox, two: Sandbox, daemon: Daemon) -> None:
        self.one = one
        self.two = two
        self.own, self.other = place_of(one, daemon), place_of(two, daemon)
        self.namespace = namespace_of(daemon.state)

    def passes(self, *frames: bytes) -> dict[str, bool]:
        """Send frames that have a mark; say where else than at the sender's tap they were."""
        own, gateway = self.own, self.own.gateway
        honest = ipv4(own.ip, gateway, UDP, udp(9, HONEST))
        with Capture(self.namespace) as capture:
            send_frames(self.one, [*frames, ethernet(own.gateway_mac, own.mac, IPV4, honest)])
        assert set(capture.with_mark(HONEST)) == {own.tap, BRIDGE}
        sent = sum(SPOOFED in seen.frame for seen in capture.seen if seen.link == own.tap)
        assert sent == len(frames)
        found = capture.with_mark(SPOOFED)
        del found[own.tap]
        return found


@pytest.fixture
def two(manager: SandboxManager, daemon: Daemon) -> Iterator[Two]:
    with siblings(manager, "one", "two") as (one, other):
        yield Two(one, other, daemon)


def datagram(source: str, target: str) -> bytes:
    return ipv4(source, target, UDP, udp(9, SPOOFED))


def test_another_source(two: Two) -> None:
    """Frames with another MAC or IP address than the guest's own get nowhere."""
    own, other = two.own, two.other
    taken = {own.ip, other.ip}
    strange_ip = next(ip for ip in ("10.20.1.77", "10.20.1.78", "10.20.1.79") if ip not in taken)
    pairs = [
        (STRANGE_MAC, own.ip),
        (other.mac, own.ip),
        (own.gateway_mac, own.ip),
        (own.mac, other.ip),
        (own.mac, own.gateway),
        (own.mac, strange_ip),
        (own.mac, "93.184.215.14"),
        (own.mac, "0.0.0.0"),
        (own.mac, "127.0.0.1"),
        (other.mac, other.ip),
        (own.gateway_mac, own.gateway),
    ]
    targets = [(own.gateway_mac, own.gateway), (other.mac, other.ip), (BROADCAST, "10.20.1.255")]
    frames = [
        ethernet(target_mac, mac, IPV4, datagram(ip, target_ip))
        for mac, ip in pairs
        for target_mac, target_ip in targets
    ]
    assert two.passes(*frames) == {}


def test_false_arp(two: Two) -> None:
    """A guest that answers for another address, or asks as another, is heard by nobody."""
    own, other = two.own, two.other
    claims = [
        (own.mac, own.gateway),
        (own.mac, other.ip),
        (STRANGE_MAC, own.ip),
        (STRANGE_MAC, other.ip),
        (other.mac, other.ip),
        (own.gateway_mac, own.gateway),
    ]
    frames = [
        ethernet(target, source, ARP, arp(operation, claim, (other.mac, other.ip)) + SPOOFED)
        for claim in claims
        for operation in (REQUEST, REPLY)
        for target in (BROADCAST, other.mac, own.gateway_mac)
        for source in (own.mac, claim[0])
    ]
    # What it says in the packet is true, but not who sends the frame.
    frames += [
        ethernet(BROADCAST, source, ARP, arp(REQUEST, (own.mac, own.ip), claims[1]) + SPOOFED)
        for source in (STRANGE_MAC, other.mac, own.gateway_mac)
    ]
    before = neighbours(two.namespace)
    assert two.passes(*frames) == {}
    assert neighbours(two.namespace) <= before | {(own.ip, own.mac), (other.ip, other.mac)}
    assert own.mac not in two.two.run("ip neigh", check=True).text


def neighbours(namespace: str) -> set[tuple[str, str]]:
    entries = json.loads(ip("-n", namespace, "-j", "neigh"))
    # One without an address is still asked for: it was told by nobody.
    return {(entry["dst"], entry["lladdr"]) for entry in entries if "lladdr" in entry}


def test_honest_frames_to_siblings(two: Two) -> None:
    """Under its own addresses too, a guest sends nothing to a sibling, nor to all at once."""
    own, other = two.own, two.other
    packets = [
        datagram(own.ip, other.ip),
        ipv4(own.ip, other.ip, ICMP, ping(SPOOFED)),
        ipv4(own.ip, other.ip, TCP, syn(own.ip, other.ip, 22) + SPOOFED),
    ]
    frames = [
        ethernet(mac, own.mac, IPV4, packet)
        for packet in packets
        for mac in (other.mac, BROADCAST, "01:00:5e:00:00:01", STRANGE_MAC)
    ]
    frames += [
        ethernet(mac, own.mac, IPV4, datagram(own.ip, target))
        for mac in (other.mac, BROADCAST, "01:00:5e:00:00:01")
        for target in ("10.20.1.255", "255.255.255.255", "224.0.0.1", "224.0.0.251")
    ]
    asks = arp(REQUEST, (own.mac, own.ip), (BROADCAST, other.ip)) + SPOOFED
    frames += [ethernet(mac, own.mac, ARP, asks) for mac in (BROADCAST, other.mac)]
    with listening(two.two) as heard:
        seen = two.passes(*frames)
    assert set(seen) <= {BRIDGE}  # which hears it, and passes it on to nobody
    assert SPOOFED.hex() not in heard[0]


@contextmanager
def listening(sandbox: Sandbox) -> Iterator[list[str]]:
    """Give what a guest hears at its interface; filled when the block has ended."""
    heard: list[str] = []
    with sandbox.exec(["python3", "-S", "-c", LISTEN], user="root") as process:
        lines = process.stdout_lines()
        assert next(lines) == "listening"
        yield heard
        process.kill()
        heard.append("\n".join(lines))


def test_ipv6(two: Two) -> None:
    """No IPv6 leaves a guest: no packet to the host or a sibling, and no advertised router."""
    own = two.own
    link_local = "fe80::a2:aff:fe14:102"
    advertisement = router_advertisement(link_local, own.mac, "2001:db8:666::")
    packet = ipv6(link_local, ALL_NODES, 58, advertisement + SPOOFED)
    frames = [
        ethernet(
            mac, own.mac, IPV6, ipv6(link_local, target, UDP, udp6(link_local, target, 9, SPOOFED))
        )
        for mac in (ALL_NODES_MAC, own.gateway_mac, two.other.mac, BROADCAST)
        for target in (ALL_NODES, "fe80::1", "2001:db8::1")
    ]
    frames += [ethernet(mac, own.mac, IPV6, packet) for mac in (ALL_NODES_MAC, BROADCAST)]
    routes = ip("-n", two.namespace, "-6", "route")
    with listening(two.two) as heard:
        assert two.passes(*frames) == {}
    assert "86dd" not in {line[24:28] for line in heard[0].splitlines()}
    assert ip("-n", two.namespace, "-6", "route") == routes


def test_other_protocols(two: Two) -> None:
    """Frames with VLAN tags, and of other protocols, get nowhere."""
    own, other = two.own, two.other
    inner = IPV4.to_bytes(2, "big") + datagram(own.ip, other.ip)
    frames = [
        ethernet(mac, own.mac, kind, tag + inner)
        for mac in (own.gateway_mac, other.mac, BROADCAST)
        for kind in (VLAN, 0x88A8)
        for tag in (b"\0\0", b"\0\x05")
    ]
    frames += [
        ethernet(mac, own.mac, kind, SPOOFED.ljust(60, b"\0"))
        for mac in (own.gateway_mac, other.mac, BROADCAST)
        for kind in (0x0026, 0x8863, 0x888E, 0x88CC, 0x9000)
    ]
    assert two.passes(*frames) == {}


def test_forwarding_table(two: Two) -> None:
    """Nothing that a guest sends moves an address to its port of the bridge."""
    own, other = two.own, two.other
    sources = [other.mac, own.gateway_mac, STRANGE_MAC]

    def table() -> set[tuple[str, str]]:
        # Not all of it: taps for guests to come are added meanwhile.
        there = forwarding_table(two.namespace)
        return {(mac, port) for mac, port in there if mac in sources or port == own.tap}

    before = table()
    assert (other.mac, other.tap) in before
    targets = [*LINK_LOCAL, BROADCAST, own.gateway_mac, other.mac]
    frames = [
        ethernet(target, source, kind, datagram(own.ip, own.gateway))
        for source in sources
        for target in targets
        for kind in (IPV4, ARP, 0x0026)
    ]
    with Capture(two.namespace) as capture:
        send_frames(two.one, frames)
    assert own.tap in capture.with_mark(SPOOFED)
    assert table() == before


def test_link_local_frames(two: Two) -> None:
    """The host heeds nothing in frames that are meant for bridges, of which it takes a copy."""
    own = two.own
    service = Service(two.namespace, "0.0.0.0", 0)
    link_local = "fe80::a2:aff:fe14:102"
    advertisement = router_advertisement(link_local, own.mac, "2001:db8:666::")
    addresses, routes = (ip("-n", two.namespace, "-6", what) for what in ("addr", "route"))
    six = Six(two.namespace)
    try:
        packets = [
            (IPV4, ipv4(own.ip, own.gateway, UDP, udp(service.port, SPOOFED))),
            (IPV4, ipv4(own.ip, own.gateway, ICMP, ping(SPOOFED))),
            (IPV6, ipv6(link_local, ALL_NODES, 58, advertisement)),
            (
                IPV6,
                ipv6(link_local, ALL_NODES, UDP, udp6(link_local, ALL_NODES, six.port, SPOOFED)),
            ),
        ]
        frames = [
            ethernet(target, own.mac, kind, packet)
            for target in LINK_LOCAL
            for kind, packet in packets
        ]
        with Capture(two.namespace) as capture:
            send_frames(two.one, frames)
        assert own.tap in capture.with_mark(SPOOFED)
        assert not any(seen.leaves and SPOOFED in seen.frame for seen in capture.seen)
        assert service.heard == []
        assert six.heard() == []
        assert ip("-n", two.namespace, "-6", "route") == routes
        assert ip("-n", two.namespace, "-6", "addr") == addresses
    finally:
        service.close()
        six.close()
