"""The settings in the table ``[network]``."""

from __future__ import annotations

import ipaddress
from typing import Any, Literal

from attrs import field, frozen
from attrs.validators import ge, matches_re, optional

from arrakis_rpc.network_api import Egress, PortRequest, parse_ports


def _interface(_: object, attribute: Any, value: str) -> None:
    if ipaddress.IPv4Interface(value).network.num_addresses < 4:
        raise ValueError(f"{attribute.name} leaves no room for guests; try 10.20.1.1/24")


def _networks(_: object, __: Any, value: list[str]) -> None:
    for text in value:
        ipaddress.IPv4Network(text)


def _addresses(_: object, __: Any, value: list[str]) -> None:
    for text in value:
        ipaddress.IPv4Address(text)


def _port_range(_: object, attribute: Any, value: str) -> None:
    try:
        parse_ports(value)
    except ValueError as error:
        raise ValueError(f"{attribute.name} is {error}: {value!r}") from None


@frozen
class DefaultPorts:
    """Guest ports, ``"N"`` or ``"N-M"``, that every VM has forwarded unless it asks otherwise."""

    ports: str = field(validator=_port_range)
    description: str = ""


def _default_ports() -> list[DefaultPorts]:
    return [DefaultPorts("5901", "gui"), DefaultPorts("5736-5740", "code")]


@frozen
class NetworkConfig:
    """The table ``[network]``."""

    mode: Literal["bridge", "user", "none"] = "bridge"
    namespace: str | None = field(
        default=None, validator=optional(matches_re(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"))
    )
    # A tap's name is this, a hyphen and a number, and may have 15 characters.
    bridge: str = field(default="arrakis0", validator=matches_re(r"[a-z][a-z0-9]{0,9}"))
    address: str = field(default="10.20.1.1/24", validator=_interface)
    port_forwards: list[DefaultPorts] = field(factory=_default_ports)
    host_ports: str = field(default="20000-29999", validator=_port_range)
    dns: list[str] = field(factory=list, validator=_addresses)
    egress: Literal["none", "internet"] | None = None
    mbit: int | None = field(default=None, validator=optional(ge(1)))
    allow_private: list[str] = field(factory=list, validator=_networks)

    def __attrs_post_init__(self) -> None:
        if self.mode == "user" and self.mbit is not None:
            raise ValueError("mbit: mode 'user' limits no bandwidth")

    @property
    def interface(self) -> ipaddress.IPv4Interface:
        """The bridge's own address, with its network."""
        return ipaddress.IPv4Interface(self.address)

    @property
    def host_port_range(self) -> range:
        """Ports of the host that may be given to VMs."""
        return parse_ports(self.host_ports)

    @property
    def default_egress(self) -> Egress:
        """What a VM may reach that does not say.

        In mode ``user`` nothing, unless that is set: the internet includes the host there.
        """
        return Egress(self.egress or ("internet" if self.mode == "bridge" else "none"))

    @property
    def default_ports(self) -> list[PortRequest]:
        """What is forwarded into a VM that does not say."""
        return [
            PortRequest(guest_port=port, description=entry.description)
            for entry in self.port_forwards
            for port in parse_ports(entry.ports)
        ]
