"""The packet filter's rules, as text for `nftables.apply`.

Two tables of one name. The one of family ``bridge`` binds each tap to one MAC and one IPv4
address and drops everything else that a guest sends, IPv6 and router advertisements included.
The one of family ``inet`` decides what guests may reach, and who may reach them.

What a guest sends is judged packet by packet, and so is what answers it: a policy that changes
cuts the connections that it no longer allows, both ways.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterator, Sequence

from attrs import frozen

from arrakis_rpc.network_api import Egress, Target

DNS_PORT = 53

# https://www.iana.org/assignments/iana-ipv4-special-registry: what is not the internet.
NOT_GLOBAL = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",
)


@frozen
class Binding:
    """Which port of the bridge a VM has, and who it is there."""

    tap: str
    mac: str
    ip: ipaddress.IPv4Address


@frozen
class Ruleset:
    """The rules of one bridge. ``address`` is the bridge's own.

    ``private`` are networks that guests may reach although they are not the internet.
    """

    bridge: str
    address: ipaddress.IPv4Interface
    private: Sequence[str]

    @property
    def table(self) -> str:
        """Name of both tables."""
        return table_of(self.bridge)

    def install(self) -> str:
        """Rules for a bridge without VMs; whatever is there of it is replaced."""
        return f"""
{drop_tables(self.bridge)}
table bridge {self.table} {{
    set bound {{
        type ifname . ether_addr . ipv4_addr
    }}
    map limited {{
        type ifname : verdict
    }}
    chain prerouting {{
        type filter hook prerouting priority -200; policy accept
        iifname "{self.bridge}-*" jump from_tap
    }}
    chain output {{
        type filter hook output priority 0; policy accept
        oifname vmap @limited
    }}
    chain from_tap {{
        iifname vmap @limited
        ether type arp iifname . ether saddr . arp saddr ip @bound \
            iifname . arp saddr ether . arp saddr ip @bound accept
        ether type ip iifname . ether saddr . ip saddr @bound accept
        drop
    }}
}}
table inet {self.table} {{
    set forbidden {{
        type ipv4_addr
        flags interval
        elements = {{ {", ".join(NOT_GLOBAL)} }}
    }}
    set exempted {{
        type ipv4_addr
        flags interval
        {self._exemptions()}
    }}
    set asking {{
        type ipv4_addr
        flags dynamic
        timeout 1m
    }}
    map egress {{
        type ipv4_addr : verdict
    }}
    map answers {{
        type ipv4_addr : verdict
    }}
    map published {{
        type inet_service : ipv4_addr . inet_service
    }}
    set entrances {{
        type inet_service . ipv4_addr . inet_service
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept
        iifname "{self.bridge}" jump from_guest
        oifname "{self.bridge}" jump to_guest
    }}
    chain from_guest {{
        oifname "{self.bridge}" drop
        ct direction reply meta l4proto tcp \
            ct original proto-dst . ip saddr . tcp sport @entrances accept
        ct direction reply ct state related accept
        ip daddr @forbidden ip daddr != @exempted drop
        ip saddr vmap @egress
        drop
    }}
    chain to_guest {{
        ct status dnat meta l4proto tcp \
            ct original proto-dst . ip daddr . tcp dport @entrances accept
        ct state related accept
        ct direction reply ct state established ip daddr vmap @answers
        drop
    }}
    chain input {{
        type filter hook input priority filter; policy accept
        iifname "{self.bridge}" jump to_host
        iifname "{self.bridge}-*" drop
    }}
    chain to_host {{
        ct direction reply ct state established,related accept
        ip daddr != {self.address.ip} drop
        meta l4proto {{ tcp, udp }} th dport {DNS_PORT} jump to_resolver
        drop
    }}
    chain to_resolver {{
        update @asking {{ ip saddr limit rate over 200/second burst 400 packets }} drop
        accept
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept
        ip saddr {self.address.network} oifname != "{self.bridge}" masquerade
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept
        iifname != "{self.bridge}" fib daddr type local dnat ip to tcp dport map @published
    }}
}}
"""

    def _exemptions(self) -> str:
        return f"elements = {{ {', '.join(self.private)} }}" if self.private else ""

    def admit(self, binding: Binding, egress: Egress, mbit: int | None) -> str:
        """Let a VM take part, with so many Mbit/s in both directions together."""
        return "\n".join(
            [
                f"add element bridge {self.table} bound {_bound(binding)}",
                *(self._limit(binding, mbit) if mbit else ()),
                *self._egress_chains(binding.ip, egress),
                *(
                    f"add element inet {self.table} {verdicts}"
                    for verdicts in _verdicts(binding.ip)
                ),
            ]
        )

    def rebind(self, former: Binding, binding: Binding, mbit: int | None) -> str:
        """Let an admitted VM take part by another tap; its policy stays."""
        return "\n".join(
            [
                f"delete element bridge {self.table} bound {_bound(former)}",
                f"add element bridge {self.table} bound {_bound(binding)}",
                *(self._drop_limit(former) if mbit else ()),
                *(self._limit(binding, mbit) if mbit else ()),
            ]
        )

    def change_egress(self, ip: ipaddress.IPv4Address, former: Egress, egress: Egress) -> str:
        """Replace what an admitted VM may reach."""
        return "\n".join(
            [
                *(f"flush chain inet {self.table} {chain}" for chain in _chains(ip)),
                *self._drop_sets(ip, former),
                *self._egress_chains(ip, egress),
            ]
        )

    def expel(self, binding: Binding, egress: Egress, mbit: int | None) -> str:
        """Forget an admitted VM."""
        return "\n".join(
            [
                f"delete element bridge {self.table} bound {_bound(binding)}",
                *(self._drop_limit(binding) if mbit else ()),
                *(
                    f"delete element inet {self.table} {verdicts}"
                    for verdicts in _verdicts(binding.ip)
                ),
                *(
                    f"{verb} chain inet {self.table} {chain}"
                    for chain in _chains(binding.ip)
                    for verb in ("flush", "delete")
                ),
                *self._drop_sets(binding.ip, egress),
            ]
        )

    def _limit(self, binding: Binding, mbit: int) -> Iterator[str]:
        chain = f"bridge {self.table} {_limit_chain(binding)}"
        kbytes = mbit * 125
        yield f"add chain {chain}"
        # A tenth of a second's worth may come at once: less would starve TCP.
        rate = f"{kbytes} kbytes/second burst {max(64, kbytes // 10)} kbytes"
        yield f"add rule {chain} limit rate over {rate} drop"
        yield f"add element bridge {self.table} limited {_limited(binding)}"

    def _drop_limit(self, binding: Binding) -> Iterator[str]:
        yield f"delete element bridge {self.table} limited {_limited(binding)}"
        yield f"delete chain bridge {self.table} {_limit_chain(binding)}"

    def publish(self, host_port: int, ip: ipaddress.IPv4Address, guest_port: int) -> str:
        """Forward a port of the host's addresses to a VM, for those outside."""
        return self._publication("add", host_port, f"{ip} . {guest_port}")

    def withdraw(self, host_port: int, ip: ipaddress.IPv4Address, guest_port: int) -> str:
        """Forward a published port no longer, nor let open connections go on."""
        return self._publication("delete", host_port, f"{ip} . {guest_port}")

    def _publication(self, verb: str, port: int, target: str) -> str:
        return (
            f"{verb} element inet {self.table} published {{ {port} : {target} }}\n"
            f"{verb} element inet {self.table} entrances {{ {port} . {target} }}"
        )

    def resolved(
        self, ip: ipaddress.IPv4Address, number: int, addresses: Sequence[str], seconds: int
    ) -> str:
        """Let a VM reach what the domain of its n-th target has just been resolved to."""
        elements = ", ".join(f"{address} timeout {seconds}s" for address in addresses)
        name = _domain_set(ip, number)
        # Added again, an element keeps its former time: delete it first, which needs it there.
        return (
            f"add element inet {self.table} {name} {{ {elements} }}\n"
            f"delete element inet {self.table} {name} {{ {', '.join(addresses)} }}\n"
            f"add element inet {self.table} {name} {{ {elements} }}"
        )

    def _egress_chains(self, ip: ipaddress.IPv4Address, egress: Egress) -> Iterator[str]:
        """What the guest may send, and what of the answers it may get: one mirrors the other."""
        out, back = (f"inet {self.table} {chain}" for chain in _chains(ip))
        for chain in (out, back):
            yield f"add chain {chain}"
            yield f"flush chain {chain}"  # what a former VM may have left there is not this one's
        if egress.mode == "internet":
            yield f"add rule {out} accept"
            yield f"add rule {back} accept"
        if egress.mode != "allow":
            return
        # A connection to a name outlives the time for which the name's address is allowed,
        # but not the policy: its mark is of this policy only.
        mark = secrets.randbits(32)
        yield f"add rule {out} ct state established ct mark {mark} accept"
        yield f"add rule {back} ct mark {mark} accept"
        for number, target in enumerate(egress.targets):
            if target.domain is None:
                yield f"add rule {out} ip daddr {target.network} {_ports(target, 'dport')}accept"
                yield f"add rule {back} ip saddr {target.network} {_ports(target, 'sport')}accept"
                continue
            name = _domain_set(ip, number)
            # Whoever owns the name says which addresses it has: private ones he must not open.
            to = f"ip daddr @{name} ip daddr != @exempted {_ports(target, 'dport')}"
            yield f"add set inet {self.table} {name} {{ type ipv4_addr; flags timeout; }}"
            yield f"add rule {out} {to}ct mark set {mark} accept"

    def _drop_sets(self, ip: ipaddress.IPv4Address, egress: Egress) -> Iterator[str]:
        for number, target in enumerate(egress.targets):
            if target.domain is not None:
                yield f"delete set inet {self.table} {_domain_set(ip, number)}"


def table_of(bridge: str) -> str:
    """Name of the tables of a bridge."""
    return f"arrakis_{bridge}"


def drop_tables(bridge: str) -> str:
    """Remove a bridge's tables, be they there or not."""
    lines = []
    for family in ("bridge", "inet"):
        table = f"{family} {table_of(bridge)}"
        lines += [f"add table {table}", f"delete table {table}"]
    return "\n".join(lines)


def _limit_chain(binding: Binding) -> str:
    return f"limit_{str(binding.ip).replace('.', '_')}"


def _limited(binding: Binding) -> str:
    return f'{{ "{binding.tap}" : jump {_limit_chain(binding)} }}'


def _bound(binding: Binding) -> str:
    return f'{{ "{binding.tap}" . {binding.mac} . {binding.ip} }}'


def _chains(ip: ipaddress.IPv4Address) -> tuple[str, str]:
    name = f"vm_{str(ip).replace('.', '_')}"
    return name, f"{name}_answers"


def _verdicts(ip: ipaddress.IPv4Address) -> Iterator[str]:
    # By jump: a chain that is reached by goto ends beyond the drop that follows the look-up.
    for verdicts, chain in zip(("egress", "answers"), _chains(ip), strict=True):
        yield f"{verdicts} {{ {ip} : jump {chain} }}"


def _domain_set(ip: ipaddress.IPv4Address, number: int) -> str:
    return f"{_chains(ip)[0]}_target_{number}"


def _ports(target: Target, side: str) -> str:
    if target.ports is None:
        return ""
    first, last = target.ports
    return f"meta l4proto {{ tcp, udp }} th {side} {first}-{last} "
