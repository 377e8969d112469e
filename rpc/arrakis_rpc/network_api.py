"""What a VM may reach, and by which ports it is reached."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Any, Literal

from attrs import Attribute, field, frozen
from attrs.validators import ge, le, max_len, optional

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# With a dot in it: "internet" is not meant as the name of a host.
_DOMAIN = re.compile(rf"(?:\*|{_LABEL})(?:\.{_LABEL})+\.?")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_MOST_TARGETS = 256
_MOST_PORTS = 64

port_number = [ge(1), le(65535)]


@frozen
class Target:
    """Something that a VM may connect to: a network or a domain, and there some ports or all.

    Exactly one of ``network`` and ``domain`` is set. A domain in lower case; beginning with
    ``*.`` it stands for everything below it.
    """

    network: ipaddress.IPv4Network | None
    domain: str | None
    ports: tuple[int, int] | None


@lru_cache(maxsize=4 * _MOST_TARGETS)  # each question to the name server is held against all
def parse_target(text: str) -> Target:
    """Read ``TARGET[:PORT[-PORT]]``; raise `ValueError`.

    The target is an IPv4 address, a network in CIDR notation, or a domain name.
    """
    place, colon, ports = text.partition(":")
    limits = _parse_limits(ports) if colon else None
    if re.fullmatch(r"[\d./]+", place):
        return Target(_parse_network(place), None, limits)
    if not _DOMAIN.fullmatch(place) or len(place) > 253:
        raise ValueError("neither an IPv4 network nor a domain name")
    return Target(None, place.lower().rstrip("."), limits)


def _parse_network(text: str) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(text)
    except ValueError:
        # In words of our own: an error that crosses the wire quotes nothing that came by it.
        raise ValueError("not an IPv4 network; 93.184.0.0/16 is one") from None


def parse_ports(text: str) -> range:
    """Read ``PORT[-PORT]``; raise `ValueError`."""
    found = _PORTS.fullmatch(text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last <= 65535:
        raise ValueError("neither a port nor a range of ports")
    return range(first, last + 1)


def _parse_limits(text: str) -> tuple[int, int]:
    try:
        ports = parse_ports(text)
    except ValueError as error:
        raise ValueError(f"{error} after its colon") from None
    return ports[0], ports[-1]


def _targets(_: object, attribute: Attribute[list[str]], value: list[str]) -> None:
    if len(value) > _MOST_TARGETS:
        raise ValueError(f"{attribute.name} has more than {_MOST_TARGETS} targets")
    for number, text in enumerate(value):
        try:
            parse_target(text)
        except ValueError as error:
            raise ValueError(f"{attribute.name}[{number}] is {error}") from None


@frozen
class Egress:
    """What connections a VM may open.

    ``none``: none. ``internet``: to everything but the host, other VMs, and private and
    link-local networks. ``allow``: of those, only to the targets in ``allow``, each in the
    form that `parse_target` reads; names are resolved by the daemon's own resolver.
    """

    mode: Literal["none", "internet", "allow"] = "internet"
    allow: list[str] = field(factory=list, validator=_targets)

    def __attrs_post_init__(self) -> None:
        if (self.mode == "allow") != bool(self.allow):
            raise ValueError("targets are given with mode 'allow', and only there")

    @property
    def targets(self) -> list[Target]:
        """The targets, read."""
        return [parse_target(text) for text in self.allow]


@frozen
class PortRequest:
    """A guest port to forward. Without a ``host_port`` the daemon chooses one.

    It is reachable on the host's loopback; with ``publish`` also from outside.
    """

    guest_port: int = field(validator=port_number)
    host_port: int | None = field(default=None, validator=optional(port_number))
    description: str = field(default="", validator=max_len(100))
    publish: bool = False


def _ports(_: object, attribute: Attribute[Any], value: list[PortRequest]) -> None:
    if len(value) > _MOST_PORTS:
        raise ValueError(f"{attribute.name} has more than {_MOST_PORTS} ports")


@frozen
class VmNetwork:
    """What of a VM's network is the caller's choice. None stands for the daemon's default.

    ``mbit`` is how many Mbit/s it may send and receive, in all.
    """

    egress: Egress | None = None
    ports: list[PortRequest] | None = field(default=None, validator=optional(_ports))
    mbit: int | None = field(default=None, validator=optional([ge(1), le(100_000)]))


@frozen
class Forward:
    """A guest port that is reachable at ``host_port``, on loopback or also from outside."""

    guest_port: int
    host_port: int
    description: str
    published: bool
