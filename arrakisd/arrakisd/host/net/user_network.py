"""VMs behind a network stack inside their VMM, which needs no rights on the host.

QEMU's stack leads a guest that may open connections to the host's own loopback (as 10.0.2.2) as
well as to the internet, and cannot do only the latter. So here guests may open none, unless
the configuration's default says otherwise and takes that risk for all of them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import trio
from attrs import evolve

from arrakis_rpc.errors import NotFoundError, UnsupportedError
from arrakis_rpc.guest_api import Network
from arrakis_rpc.network_api import Egress, Forward, PortRequest

from ...settings.network import NetworkConfig
from .host_ports import EVERYWHERE, LOOPBACK, claim_port, require_free
from .interface import InUse, Nic, PlugRequest, PortForwarder, UserNic, open_ports
from .leases import Leases

# The stack's built-in addresses; https://wiki.qemu.org/Documentation/Networking
_ADDRESS = ipaddress.IPv4Interface("10.0.2.15/24")
_GUEST = Network(
    mac="02:a2:0a:00:02:0f", address=str(_ADDRESS), gateway="10.0.2.2", dns=["10.0.2.3"]
)

_NO_CHOICE = "what VMs may reach cannot be chosen in network mode 'user'"
_LIMIT_HINT = 'start without mbit, or run the daemon with mode = "bridge"'
_HINT = 'set egress in [network] for all of them, or run the daemon with mode = "bridge"'


class UserNetwork:
    """Nothing but who has which port of the host."""

    kind = "user"
    spare_taps = 0
    trouble = None
    trial = _GUEST

    def __init__(self, config: NetworkConfig, directory: Path) -> None:
        self.ports = Leases(
            directory / "ports", config.host_port_range, "host port", config.host_ports
        )
        self._default = config.default_egress

    @asynccontextmanager
    async def card(self, egress: Egress) -> AsyncIterator[UserNic]:
        """Give a card for VMs with one policy; raise `UnsupportedError` if it cannot be."""
        self.check(egress)
        yield _card(egress)

    def suits(self, nic: Nic | None, egress: Egress) -> bool:
        """Whether a card was made for a policy."""
        return nic == _card(egress)

    @asynccontextmanager
    async def plug(self, request: PlugRequest) -> AsyncIterator[UserPlug]:
        """Connect a VM for the length of a block."""
        if request.mbit is not None:
            raise UnsupportedError("network mode 'user' limits no bandwidth", hint=_LIMIT_HINT)
        plug = UserPlug(self, request)
        try:
            yield plug
        finally:
            for forward in plug.forwards:  # closed already, with the VMM
                self.ports.give_back(forward.host_port)

    def check(self, egress: Egress) -> None:
        """Raise `UnsupportedError` for a policy that cannot be enforced here."""
        if egress.mode != "none" and egress != self._default:
            raise UnsupportedError(_NO_CHOICE, hint=_HINT)


def _card(egress: Egress) -> UserNic:
    return UserNic(restricted=egress.mode == "none")


def _listening(published: bool) -> str:
    return EVERYWHERE if published else LOOPBACK


class UserPlug:
    """One VM's ports."""

    address = _ADDRESS
    guest = _GUEST
    tap = None

    def __init__(self, network: UserNetwork, request: PlugRequest) -> None:
        self.egress = request.egress
        self.in_use: InUse = nullcontext
        self._ports = network.ports
        self._request = request
        self._vmm: PortForwarder | None = None
        self._has_opened = False
        self._forwards: dict[int, Forward] = {}

    @property
    def forwards(self) -> list[Forward]:
        """The ports that lead into the guest now."""
        return list(self._forwards.values())

    async def attach(self, _: Nic | None, vmm: PortForwarder) -> None:
        """Open the ports; those of the former VMM have closed with it."""
        self._vmm = vmm
        if not self._has_opened:
            self._has_opened = True
            await open_ports(self, self._request)
            return
        for forward in self.forwards:
            address = _listening(forward.published)
            await vmm.forward_port(address, forward.host_port, forward.guest_port)

    async def detach(self) -> None:
        """Nothing is left to do: all was the VMM's."""
        await trio.lowlevel.checkpoint()

    async def connect(self) -> None:
        """Nothing is left to do: no packet of this guest gets out of its VMM."""
        await trio.lowlevel.checkpoint()

    async def add_port(self, request: PortRequest) -> Forward:
        """Forward one more port; raise `AlreadyExistsError` or `ExhaustedError`."""
        assert self._vmm is not None
        address = _listening(request.publish)
        host_port, _ = claim_port(
            self._ports,
            self._request.vm,
            request.host_port,
            lambda port: require_free(address, port),
        )
        try:
            await self._vmm.forward_port(address, host_port, request.guest_port)
        except BaseException:
            self._ports.give_back(host_port)
            raise
        forward = Forward(request.guest_port, host_port, request.description, request.publish)
        self._forwards[host_port] = forward
        return forward

    async def remove_port(self, host_port: int) -> None:
        """Forward a port no longer; raise `NotFoundError`."""
        assert self._vmm is not None
        forward = self._forwards.get(host_port)
        if forward is None:
            raise NotFoundError(f"VM '{self._request.vm}' has no forward from port {host_port}")
        address = _listening(forward.published)
        await self._vmm.unforward_port(address, host_port)
        del self._forwards[host_port]
        self._ports.give_back(host_port)

    def rename(self, vm: str) -> None:
        """Be the place of a VM that has another name now."""
        self._request = evolve(self._request, vm=vm)
        for host_port in self._forwards:
            self._ports.rename(host_port, vm)

    async def change_egress(self, egress: Egress) -> None:
        """Raise `UnsupportedError` for any change: the stack is told at its start."""
        await trio.lowlevel.checkpoint()
        if egress != self.egress:
            raise UnsupportedError(_NO_CHOICE, vm=self._request.vm, hint=_HINT)
