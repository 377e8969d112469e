"""The bridge to which all taps are joined, and which is the guests' gateway.

All of this blocks, and works in the namespace of the thread that calls it.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import re
import socket
import struct
from pathlib import Path

import structlog
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from arrakis_rpc.errors import AlreadyExistsError

_SETTINGS = Path("/proc/sys/net")
# <linux/sockios.h>, <linux/if.h>
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_FLAGS_REQUEST = struct.Struct("16sH22x")
_STATIC = 0x40  # NUD_NOARP: an entry that neither ages nor moves
# Frames to 01:80:c2:00:00:0X are for bridges themselves. Unless they are forwarded (which pause
# frames cannot be), they come by no rule of family bridge and reach the host as from the tap.
_ALL_GROUPS = 0xFFFF & ~(1 << 1)

log = structlog.get_logger()


def make_bridge(name: str, address: ipaddress.IPv4Interface, owner: str) -> None:
    """Make the bridge. ``owner`` is written into the interface's alias.

    Raises `AlreadyExistsError` for an interface of that name that is somebody else's.
    """
    with IPRoute() as ip:
        try:
            ip.link("add", ifname=name, kind="bridge", br_mcast_snooping=0)
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                raise AlreadyExistsError(
                    f"there is a network interface '{name}' that is not this daemon's",
                    hint="choose another name: bridge in [network]",
                ) from error
            raise
        index = socket.if_nametoindex(name)
        ip.link("set", index=index, ifalias=owner)
        # Guests have IPv4 only; nor shall the bridge take part in anybody's IPv6.
        _set(f"ipv6/conf/{name}/disable_ipv6", "1")
        ip.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
        ip.link("set", index=index, state="up")
    _forward_packets()


def remove_bridge(name: str, owner: str) -> None:
    """Remove a bridge if its alias names this owner, or nobody (then its maker was killed)."""
    with IPRoute() as ip:
        for link in ip.get_links():
            is_ours = link.get_attr("IFLA_IFALIAS") in (owner, None)
            if link.get_attr("IFLA_IFNAME") == name and is_ours:
                ip.link("del", index=link["index"])
                _remove_taps(ip, name)


def _remove_taps(ip: IPRoute, bridge: str) -> None:
    """Remove the taps that a killed daemon's VMMs had opened by name."""
    for link in ip.get_links():
        info = link.get_attr("IFLA_LINKINFO")
        kind = info.get_attr("IFLA_INFO_KIND") if info else None
        if kind == "tun" and re.fullmatch(
            rf"{re.escape(bridge)}-\d+", link.get_attr("IFLA_IFNAME")
        ):
            ip.link("del", index=link["index"])


def join(bridge: str, tap: str, mac: str) -> None:
    """Make a tap a port of the bridge that reaches the bridge itself, but no other port.

    The bridge never learns from what a guest sends: it is told which address is where. No
    packet passes until the port is opened.
    """
    index = socket.if_nametoindex(tap)
    with IPRoute() as ip:
        ip.link("set", index=index, master=socket.if_nametoindex(bridge))
        ip.brport(
            "set",
            index=index,
            isolated=1,
            learning=0,
            unicast_flood=0,
            group_fwd_mask=_ALL_GROUPS,
        )
        ip.fdb("add", ifindex=index, lladdr=mac, state=_STATIC)
    _set(f"ipv6/conf/{tap}/disable_ipv6", "1")  # else the host would speak to the guest


def open_port(control: socket.socket, tap: str) -> None:
    """Let packets pass a port of the bridge.

    ``control`` is any socket of the namespace. By an ioctl, because a caller waits for this:
    netlink takes several times as long.
    """
    answer = fcntl.ioctl(control, _SIOCGIFFLAGS, _FLAGS_REQUEST.pack(tap.encode(), 0))
    flags: int = _FLAGS_REQUEST.unpack(answer)[1]
    fcntl.ioctl(control, _SIOCSIFFLAGS, _FLAGS_REQUEST.pack(tap.encode(), flags | _IFF_UP))


def _forward_packets() -> None:
    path = _SETTINGS / "ipv4/ip_forward"
    if path.read_text().strip() != "1":
        log.info("forwarding of IPv4 packets was switched on", setting="net.ipv4.ip_forward")
        path.write_text("1")


def _set(setting: str, value: str) -> None:
    path = _SETTINGS / setting
    if path.exists():
        path.write_text(value)
