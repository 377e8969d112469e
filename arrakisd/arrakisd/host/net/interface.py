"""What a network offers to the machines that it connects."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import Protocol

from attrs import evolve, frozen

from arrakis_rpc.errors import AlreadyExistsError, UnsupportedError
from arrakis_rpc.guest_api import Network
from arrakis_rpc.network_api import Egress, Forward, PortRequest


@frozen
class TapNic:
    """A network card on a tap device that the VMM process inherits."""

    fd: int
    name: str


@frozen
class UserNic:
    """A network card on a network stack inside the VMM process, which needs no rights.

    ``restricted`` keeps the guest from opening any connection.
    """

    restricted: bool


Nic = TapNic | UserNic
InUse = Callable[[], AbstractContextManager[None]]


@frozen
class PlugRequest:
    """A VM that wants to be connected. ``ip`` is the address it had before, if any.

    ``mbit`` is how many Mbit/s it may send and receive, in all. ``is_again`` is one that had its
    ports of the host before; where one is taken by now, another will do.
    """

    vm: str
    egress: Egress
    ports: list[PortRequest]
    ip: str | None = None
    mbit: int | None = None
    is_again: bool = False


class PortForwarder(Protocol):
    """What a VMM with a `UserNic` can do while it runs."""

    async def forward_port(self, address: str, host_port: int, guest_port: int) -> None:
        """Listen on an address of the host, and lead to a port of the guest."""

    async def unforward_port(self, address: str, host_port: int) -> None:
        """Listen there no longer."""


class Plug(Protocol):
    """A VM's place in the network. ``in_use`` is open while a forwarded connection is."""

    egress: Egress
    in_use: InUse

    @property
    def guest(self) -> Network:
        """What the guest is to configure."""

    @property
    def address(self) -> ipaddress.IPv4Interface:
        """The guest's address."""

    @property
    def tap(self) -> str | None:
        """Name of the tap device, if there is one."""

    @property
    def forwards(self) -> list[Forward]:
        """The ports that lead into the guest now."""

    async def attach(self, nic: Nic | None, vmm: PortForwarder) -> None:
        """Belong to a VMM and its card; legal while its guest still wakes, as no packet passes.

        To another one when the former has ended: ports and policy go with the VM.
        """

    async def detach(self) -> None:
        """Belong to no VMM, which has ended; address and ports are kept for the next one."""

    async def connect(self) -> None:
        """Let packets pass. Once the guest has taken its own addresses, and not before."""

    async def add_port(self, request: PortRequest) -> Forward:
        """Forward one more port; raise `AlreadyExistsError` or `ExhaustedError`."""

    async def remove_port(self, host_port: int) -> None:
        """Forward a port no longer; raise `NotFoundError`."""

    def rename(self, vm: str) -> None:
        """Be the place of a VM that has another name now."""

    async def change_egress(self, egress: Egress) -> None:
        """Change what the guest may reach, open connections included."""


async def open_ports(plug: Plug, request: PlugRequest) -> None:
    """Forward what a VM wants from its beginning."""
    for port in request.ports:
        try:
            await plug.add_port(port)
        except AlreadyExistsError:
            if not request.is_again:
                raise
            await plug.add_port(evolve(port, host_port=None))


class HostNetwork(Protocol):
    """A way to connect VMs. A guest saved under one kind cannot wake under another."""

    kind: str

    @property
    def spare_taps(self) -> int:
        """How many taps are in store for VMs to come."""

    @property
    def trouble(self) -> str | None:
        """What is wrong with it, if anything is."""

    @property
    def trial(self) -> Network | None:
        """What a guest may configure to try its card, while that is connected to nothing."""

    def card(self, egress: Egress) -> AbstractAsyncContextManager[Nic | None]:
        """Give a VMM what a network card leads to, for the length of a block.

        It leads nowhere until it is plugged. None where VMs have no card.
        """

    def suits(self, nic: Nic | None, egress: Egress) -> bool:
        """Whether a VM with a card can have an egress policy."""

    def plug(self, request: PlugRequest) -> AbstractAsyncContextManager[Plug | None]:
        """Connect a VM for the length of a block; None where VMs are not connected."""


def no_network(vm: str) -> UnsupportedError:
    """Say to who asks something of a VM's network that there is none."""
    return UnsupportedError(
        "this daemon has no network",
        vm=vm,
        hint='set mode = "bridge" or mode = "user" in [network] of its configuration',
    )


class NoNetwork:
    """VMs without a network card."""

    kind = "none"
    spare_taps = 0
    trouble = None

    trial = None

    @asynccontextmanager
    async def card(self, _: Egress) -> AsyncIterator[None]:
        """Give none."""
        yield None

    def suits(self, _: Nic | None, __: Egress) -> bool:
        """Whatever is allowed, nothing can be reached."""
        return True

    @asynccontextmanager
    async def plug(self, request: PlugRequest) -> AsyncIterator[None]:
        """Connect nothing; raise `UnsupportedError` for ports that nothing leads to."""
        if request.ports:
            raise no_network(request.vm)
        yield None
