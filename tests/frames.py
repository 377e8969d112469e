"""Ethernet frames, as a guest with a raw socket can send them."""

from __future__ import annotations

import ipaddress
import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"
ARP, IPV4, IPV6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
REQUEST, REPLY = 1, 2
ALL_NODES = "ff02::1"
ALL_NODES_MAC = "33:33:00:00:00:01"


def mac(text: str) -> bytes:
    """Read a MAC address."""
    return bytes.fromhex(text.replace(":", ""))


def ethernet(target: str, source: str, kind: int, payload: bytes) -> bytes:
    """Make a frame."""
    return mac(target) + mac(source) + struct.pack("!H", kind) + payload


def arp(operation: int, source: tuple[str, str], target: tuple[str, str]) -> bytes:
    """Make an ARP packet. Source and target are pairs of a MAC and an IP address."""
    packed = b"".join(mac(m) + _packed(i) for m, i in (source, target))
    return struct.pack("!HHBBH", 1, IPV4, 6, 4, operation) + packed


def ipv4(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    """Make an IPv4 packet."""

    def header(check: int) -> bytes:
        size = 20 + len(payload)
        fixed = struct.pack("!BBHHHBBH", 0x45, 0, size, 7, 0, 64, protocol, check)
        return fixed + _packed(source) + _packed(target)

    return header(_checksum(header(0))) + payload


def ipv6(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    """Make an IPv6 packet, with a hop limit that neighbour discovery accepts."""
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 255)
    return head + _packed(source) + _packed(target) + payload


def udp(port: int, data: bytes) -> bytes:
    """Make a UDP datagram without a checksum, which IPv4 allows."""
    return struct.pack("!HHHH", 40000, port, 8 + len(data), 0) + data


def udp6(source: str, target: str, port: int, data: bytes) -> bytes:
    """Make a UDP datagram for IPv6, where the checksum is a duty."""
    bare = udp(port, data)
    check = _checksum(_pseudo(source, target, UDP, bare) + bare)
    return bare[:6] + struct.pack("!H", check) + data


def syn(source: str, target: str, port: int) -> bytes:
    """Make a TCP segment that opens a connection."""
    bare = struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 5 << 4, 2, 65535, 0, 0)
    check = _checksum(_pseudo(source, target, TCP, bare) + bare)
    return bare[:16] + struct.pack("!H", check) + bare[18:]


def ping(data: bytes) -> bytes:
    """Make an ICMP echo request."""
    bare = struct.pack("!BBHHH", 8, 0, 0, 1, 1) + data
    return bare[:2] + struct.pack("!H", _checksum(bare)) + bare[4:]


def router_advertisement(source: str, source_mac: str, prefix: str) -> bytes:
    """Make an advertisement of a default router and of a prefix to take addresses of."""
    head = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    link = struct.pack("!BB", 1, 1) + mac(source_mac)
    info = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 1800, 1800, 0) + _packed(prefix)
    bare = head + link + info
    check = _checksum(_pseudo(source, ALL_NODES, ICMP6, bare) + bare)
    return bare[:2] + struct.pack("!H", check) + bare[4:]


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def _pseudo(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    head = _packed(source) + _packed(target)
    if len(head) == 8:
        return head + struct.pack("!BBH", 0, protocol, len(payload))
    return head + struct.pack("!IHBB", len(payload), 0, 0, protocol)


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
