# ruff: noqa: PTH105, PTH110, PTH118, PTH123, PTH208
"""Giving the guest's interface its addresses.

By ioctls, although netlink is what one uses today: in the path of every start a run of
``ip`` costs more than all the rest of the identity together, under emulation.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

from arrakis_rpc.errors import GuestError, InvalidParamsError, NotFoundError
from arrakis_rpc.guest_api import Network

# <linux/sockios.h>
_SIOCADDRT = 0x890B
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCGIFADDR = 0x8915
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
_SIOCSIFHWADDR = 0x8924
# <linux/if.h>, <linux/if_arp.h>, <linux/route.h>
_IFF_UP = 1
_ARPHRD_ETHER = 1
_RTF_UP_GATEWAY = 3

_ADDRESS_REQUEST = struct.Struct("16sH2x4s16x")  # struct ifreq with a sockaddr_in
_FLAGS_REQUEST = struct.Struct("16sH22x")
_HARDWARE_REQUEST = struct.Struct("16sH6s16x")
# struct rtentry: family of the destination, gateway, family of the mask, flags; the rest is zero.
# The kernel finds the interface by the gateway.
_ROUTE_REQUEST = struct.Struct("8x H14x H2x4s8x H14x H62x")

_NOWHERE = bytes(4)
_LOOPBACK = 127
_FIRST_MULTICAST = 224
# A network of less than four addresses has no place for a gateway.
_LONGEST_PREFIX = 30


class Networks:
    """Configures the network interface of the kernel that runs, found under ``root``.

    What it has found and done it remembers, through snapshots too: a machine that becomes
    another one has the same device, and mostly the same name servers.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._device: bytes | None = None
        self._socket: socket.socket | None = None
        self._name_servers: list[str] = []

    def configure(self, network: Network) -> None:
        """Set MAC address, address, route and name servers, in this order.

        Raises `InvalidParamsError` before anything is changed, `NotFoundError` when there
        is no interface, and `GuestError` for what the kernel refuses.
        """
        settings = _Settings(network)
        resolver = b""
        if network.dns != self._name_servers:
            resolver = b"".join(map(_name_server, network.dns))
        self._device = self._device or self._find()
        # Kept, as to make one costs 3 ms in a machine that was just woken.
        self._socket = self._socket or socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        interface = _Interface(self._device, self._socket)
        try:
            interface.set_mac(settings.mac)
            interface.set_address(settings.address, settings.mask)
            interface.bring_up()
            if settings.gateway is not None:
                interface.set_gateway(settings.gateway)
        except GuestError:
            self._device = None  # perhaps it has another name now
            raise
        if resolver:
            self._write_resolver(resolver)
        self._name_servers = network.dns

    def close(self) -> None:
        """Let go of the socket; it is made again when it is needed."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _find(self) -> bytes:
        """Give the name of the first interface of a device, unlike lo, docker0 and others."""
        directory = os.path.join(self._root, "sys/class/net")
        for name in sorted(os.listdir(directory)):
            if os.path.exists(f"{directory}/{name}/device"):
                return name.encode()
        raise NotFoundError("the machine has no network device")

    def _write_resolver(self, text: bytes) -> None:
        path = os.path.join(self._root, "etc/resolv.conf")
        try:
            with open(path, "rb", buffering=0) as file:
                if file.readall() == text:
                    return
        except FileNotFoundError:
            pass
        # By a rename: the name is often a link to a file that a resolver service owns.
        fresh = os.path.join(self._root, "etc/.resolv.conf.arrakis")
        with open(fresh, "wb", buffering=0) as file:
            file.write(text)
        os.replace(fresh, path)


class _Settings:
    """What a `Network` says, checked, in the form that the kernel takes."""

    def __init__(self, network: Network) -> None:
        self.mac = _mac(network.mac)
        self.address, self.mask = _address(network.address)
        self.gateway = None
        if network.gateway is not None:
            self.gateway = _gateway(network.gateway, self.address, self.mask)


class _Interface:
    """One interface, and a socket through which it is configured."""

    def __init__(self, name: bytes, control: socket.socket) -> None:
        self._name = name
        self._socket = control

    def set_mac(self, mac: bytes) -> None:
        request = _HARDWARE_REQUEST.pack(self._name, _ARPHRD_ETHER, mac)
        self._ask("set its MAC address", _SIOCSIFHWADDR, request)

    def set_address(self, address: bytes, mask: bytes) -> None:
        # One that is left over could become the address that the guest sends from.
        while self._has_address():
            self._ask_address("remove its address", _SIOCSIFADDR, _NOWHERE)
        self._ask_address("set its address", _SIOCSIFADDR, address)
        self._ask_address("set its prefix", _SIOCSIFNETMASK, mask)

    def bring_up(self) -> None:
        request = _FLAGS_REQUEST.pack(self._name, 0)
        flags: int = _FLAGS_REQUEST.unpack(self._ask("read its flags", _SIOCGIFFLAGS, request))[1]
        if not flags & _IFF_UP:
            request = _FLAGS_REQUEST.pack(self._name, flags | _IFF_UP)
            self._ask("bring it up", _SIOCSIFFLAGS, request)

    def set_gateway(self, gateway: bytes) -> None:
        """Add the default route; that of before went with the address that was removed."""
        inet = socket.AF_INET
        request = _ROUTE_REQUEST.pack(inet, inet, gateway, inet, _RTF_UP_GATEWAY)
        self._ask("set its default route", _SIOCADDRT, request)

    def _has_address(self) -> bool:
        request = _ADDRESS_REQUEST.pack(self._name, socket.AF_INET, _NOWHERE)
        try:
            fcntl.ioctl(self._socket, _SIOCGIFADDR, request)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return False
            raise self._refusal("read its address", error) from None
        return True

    def _ask_address(self, doing: str, code: int, value: bytes) -> None:
        self._ask(doing, code, _ADDRESS_REQUEST.pack(self._name, socket.AF_INET, value))

    def _ask(self, doing: str, code: int, request: bytes) -> bytes:
        try:
            return fcntl.ioctl(self._socket, code, request)
        except OSError as error:
            raise self._refusal(doing, error) from None

    def _refusal(self, doing: str, error: OSError) -> GuestError:
        return GuestError(f"{self._name.decode()}: the kernel cannot {doing}: {error.strerror}")


def _mac(text: str) -> bytes:
    # Not by a regular expression: these are two lines on the path of every start.
    try:
        mac = bytes.fromhex(text.replace(":", "")) if text[2::3] == ":::::" else b""
    except ValueError:
        mac = b""
    if len(text) == 17 and len(mac) == 6 and any(mac) and not mac[0] & 1:
        return mac
    raise InvalidParamsError(f"network: {text[:40]!r} is not the MAC address of a device")


def _address(text: str) -> tuple[bytes, bytes]:
    """Give address and mask of what is written as ``10.20.1.7/24``."""
    place, _, digits = text.partition("/")
    length = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 3 else 0
    if not 0 < length <= _LONGEST_PREFIX or digits[0] == "0":
        raise InvalidParamsError(f"network: {text[:40]!r} is not an address with its prefix")
    address = _ipv4("address", place)
    hosts = (1 << (32 - length)) - 1
    if int.from_bytes(address, "big") & hosts in (0, hosts):
        raise InvalidParamsError(f"network: {text!r} is the address of all its network")
    return address, (hosts ^ 0xFFFFFFFF).to_bytes(4, "big")


def _gateway(text: str, address: bytes, mask: bytes) -> bytes:
    gateway = _ipv4("gateway", text)
    ours, theirs, ones = (int.from_bytes(value, "big") for value in (address, gateway, mask))
    if (ours ^ theirs) & ones or ours == theirs:
        raise InvalidParamsError(f"network: gateway {text} is not a neighbour of the address")
    return gateway


def _ipv4(what: str, text: str) -> bytes:
    """Check an address that a host may have."""
    try:
        packed = socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        packed = _NOWHERE
    if not 0 < packed[0] < _FIRST_MULTICAST or packed[0] == _LOOPBACK:
        raise InvalidParamsError(f"network: {what} {text[:40]!r} is not the address of a host")
    return packed


def _name_server(text: str) -> bytes:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):
        raise InvalidParamsError(f"network: name server {text[:40]!r} has no address") from None
    return b"nameserver %s\n" % text.encode()
