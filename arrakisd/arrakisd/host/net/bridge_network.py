"""VMs on taps that are isolated ports of one bridge, behind the host's packet filter."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path

import structlog
import trio
from attrs import evolve

from arrakis_rpc.errors import AlreadyExistsError, NotFoundError, UnsupportedError
from arrakis_rpc.guest_api import Network
from arrakis_rpc.network_api import Egress, Forward, PortRequest

from ...settings.network import NetworkConfig
from . import bridge, nftables
from .forwards import LoopbackForward
from .host_ports import EVERYWHERE, claim_port, require_free
from .interface import InUse, Nic, PlugRequest, PortForwarder, TapNic, open_ports
from .leases import Leases
from .namespace import Namespace, provided, remove_namespace, translated
from .resolver import Resolver, host_name_servers
from .ruleset import Binding, Ruleset, drop_tables
from .taps import TapPool

_CLEANUP_DEADLINE = 10.0
_LOOK_AT_RULES = 2.0
_BRIDGE_MARKER = "bridge"
_NAMESPACE_MARKER = "namespace"

log = structlog.get_logger()


@asynccontextmanager
async def bridge_network(
    config: NetworkConfig, directory: Path, owner: str
) -> AsyncIterator[BridgeNetwork]:
    """Set the host's side up for the length of a block, sweeping what a crash has left.

    ``directory`` keeps what must be known after a crash. Raises `UnsupportedError` without
    the needed capabilities, `AlreadyExistsError` for a bridge that is not ours.
    """
    async with provided(config.namespace, directory / _NAMESPACE_MARKER) as namespace:
        rules = Ruleset(config.bridge, config.interface, config.allow_private)
        try:
            await namespace.run(lambda: _set_up(rules, directory, owner))
        except OSError as error:
            raise translated(error, f"the bridge '{config.bridge}' cannot be set up") from error
        try:
            control = await namespace.run(lambda: socket.socket(type=socket.SOCK_DGRAM))
            with control:
                network = BridgeNetwork(config, directory, namespace, rules, control)
                await trio.to_thread.run_sync(network.load)
                async with trio.open_nursery() as nursery:
                    await nursery.start(network.taps.run)
                    nursery.start_soon(network.keep_rules)
                    try:
                        await nursery.start(network.resolver.run, str(config.interface.ip))
                    except OSError as error:
                        raise _port_taken(config, error) from error
                    yield network
                    nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(_CLEANUP_DEADLINE, shield=True):
                await namespace.run(lambda: _tear_down(config.bridge, directory, owner))


def sweep_former(config: NetworkConfig, directory: Path, owner: str) -> None:
    """Remove the bridge and the namespace of a daemon that was killed under other settings. Blocks.

    What stands in its own namespace goes with it. A bridge in one that is somebody else's is
    found as long as the settings name that.
    """
    made, marker = directory / _NAMESPACE_MARKER, directory / _BRIDGE_MARKER
    is_bridge = config.mode == "bridge"
    if made.exists() and not (is_bridge and made.read_text() == config.namespace):
        remove_namespace(made)
        marker.unlink(missing_ok=True)
    elif marker.exists() and not is_bridge:
        name = marker.read_text()
        Namespace(config.namespace).run_here(lambda: _tear_down(name, directory, owner))


def former_network(
    config: NetworkConfig, directory: Path, owner: str
) -> tuple[str, Callable[[], None]] | None:
    """Name what a daemon that was killed has left of its network, and give what removes it."""
    made, marker = directory / _NAMESPACE_MARKER, directory / _BRIDGE_MARKER
    if not (made.exists() or marker.exists()):
        return None
    if made.exists():
        name = f"network namespace '{made.read_text()}' with the bridge and its rules"
    else:
        name = f"bridge '{marker.read_text()}' and its rules"
    return name, lambda: sweep_former(evolve(config, mode="none"), directory, owner)


def _port_taken(config: NetworkConfig, error: OSError) -> UnsupportedError:
    return UnsupportedError(
        f"guests cannot be served names at {config.interface.ip}, port 53: {error.strerror}",
        hint="a name server that listens on all addresses has it; bind that to its own ones",
    )


def _set_up(rules: Ruleset, directory: Path, owner: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    marker = directory / _BRIDGE_MARKER
    if marker.exists():
        _tear_down(marker.read_text(), directory, owner)
    marker.write_text(rules.bridge)
    try:
        bridge.make_bridge(rules.bridge, rules.address, owner)
        nftables.apply(rules.install())
    except AlreadyExistsError:
        marker.unlink()  # or the next start would sweep what is somebody else's
        raise
    except BaseException:
        _tear_down(rules.bridge, directory, owner)
        raise


def _tear_down(name: str, directory: Path, owner: str) -> None:
    bridge.remove_bridge(name, owner)
    nftables.apply(drop_tables(name))
    (directory / _BRIDGE_MARKER).unlink(missing_ok=True)


class BridgeNetwork:
    """The bridge, its rules, and who has which address and port."""

    kind = "tap"

    def __init__(
        self,
        config: NetworkConfig,
        directory: Path,
        namespace: Namespace,
        rules: Ruleset,
        control: socket.socket,
    ) -> None:
        self.namespace = namespace
        self.control = control
        self.rules = rules
        self.taps = TapPool(namespace, f"{config.bridge}-%d")
        network = config.interface.network
        own = int(config.interface.ip) - int(network.network_address)
        hosts = range(1, network.num_addresses - 1)  # not the network itself, nor broadcast
        self.addresses = Leases(directory / "addresses", hosts, "address", str(network), own)
        self.ports = Leases(
            directory / "ports", config.host_port_range, "host port", config.host_ports
        )
        self.plugs: dict[str, BridgePlug] = {}
        self.resolver = Resolver(namespace, config.dns or host_name_servers(), self.plugs.get)
        self._trouble: str | None = None
        self.has_stale_rules = False  # of VMs that are gone
        self._dns = [str(config.interface.ip)]
        trial_host = hosts[-1] if hosts[-1] != own else hosts[0]  # any would do
        self.trial = self.guest_network(self._interface(trial_host))

    def load(self) -> None:
        """Read the leases of an earlier daemon; its VMs have died with it. Blocks."""
        self.addresses.load()
        self.ports.load()

    @property
    def spare_taps(self) -> int:
        """How many taps are in store for VMs to come."""
        return len(self.taps)

    @property
    def trouble(self) -> str | None:
        """What is wrong with the bridge or the packet filter, if anything is."""
        return self._trouble

    @asynccontextmanager
    async def card(self, _: Egress) -> AsyncIterator[TapNic]:
        """Give a tap that is no port of the bridge yet, for the length of a block."""
        tap = await self.taps.take()
        try:
            yield TapNic(tap.fd, tap.name)
        finally:
            tap.close()

    def suits(self, _: Nic | None, __: Egress) -> bool:
        """Any policy is one of the packet filter, whatever the card."""
        return True

    @asynccontextmanager
    async def plug(self, request: PlugRequest) -> AsyncIterator[BridgePlug]:
        """Connect a VM for the length of a block."""
        number = self._lease_address(request)
        try:
            async with trio.open_nursery() as nursery:
                plug = BridgePlug(self, request, self._interface(number), nursery)
                try:
                    yield plug
                finally:
                    with trio.move_on_after(_CLEANUP_DEADLINE, shield=True):
                        await plug.close()
                nursery.cancel_scope.cancel()
        finally:
            self.addresses.give_back(number)

    def _lease_address(self, request: PlugRequest) -> int:
        wanted = self._number(ipaddress.IPv4Address(request.ip)) if request.ip else None
        if wanted is not None and not self.addresses.is_free(wanted):
            wanted = None
        return self.addresses.take(request.vm, wanted)

    def rename_lease(self, ip: ipaddress.IPv4Address, vm: str) -> None:
        """Note another name of the VM that has an address."""
        self.addresses.rename(self._number(ip), vm)

    def _number(self, ip: ipaddress.IPv4Address) -> int:
        return int(ip) - int(self.rules.address.network.network_address)

    def _interface(self, number: int) -> ipaddress.IPv4Interface:
        network = self.rules.address.network
        return ipaddress.IPv4Interface((network.network_address + number, network.prefixlen))

    def guest_network(self, address: ipaddress.IPv4Interface) -> Network:
        """What the guest with an address is to configure."""
        return Network(
            mac=_mac(address.ip),
            address=str(address),
            gateway=str(self.rules.address.ip),
            dns=self._dns,
        )

    async def filter(self, commands: str) -> None:
        """Change the packet filter, in one transaction."""
        await self.namespace.run(lambda: nftables.apply(commands))

    async def keep_rules(self) -> None:
        """Bring the rules back whenever somebody has flushed them, until cancelled."""
        while True:
            try:
                # In one piece of work: no VM comes or goes between the look and the repair.
                await self.namespace.run(self._mend_rules)
                self._trouble = None
            except OSError as error:
                trouble = f"the bridge '{self.rules.bridge}' and its rules are not whole: {error}"
                if trouble != self._trouble:
                    log.error("the network is not whole", reason=str(error))  # noqa: TRY400
                self._trouble = trouble
            await trio.sleep(_LOOK_AT_RULES)

    def _mend_rules(self) -> None:
        """Raise `OSError` where there is nothing to be mended any more."""
        socket.if_nametoindex(self.rules.bridge)
        if nftables.has_tables(self.rules.table) and not self.has_stale_rules:
            return
        log.error("the firewall's rules were not whole, and are made anew", table=self.rules.table)
        plugs = [plug.all_rules() for plug in list(self.plugs.values())]
        nftables.apply("\n".join([self.rules.install(), *plugs]))
        self.has_stale_rules = False


class BridgePlug:
    """One VM's port of the bridge."""

    def __init__(
        self,
        network: BridgeNetwork,
        request: PlugRequest,
        address: ipaddress.IPv4Interface,
        nursery: trio.Nursery,
    ) -> None:
        self.egress = request.egress
        self.in_use: InUse = nullcontext
        self.address = address
        self.guest = network.guest_network(address)
        self.tap: str | None = None
        self._network = network
        self._request = request
        self._nursery = nursery
        self._binding: Binding | None = None  # what the packet filter knows of it
        self._has_opened = False
        self._policing = trio.Lock()
        self._forwards: dict[int, tuple[Forward, LoopbackForward]] = {}

    @property
    def forwards(self) -> list[Forward]:
        """The ports that lead into the guest now."""
        return [forward for forward, _ in self._forwards.values()]

    @property
    def _published(self) -> list[Forward]:
        return [forward for forward in self.forwards if forward.published]

    async def attach(self, nic: Nic | None, _: PortForwarder) -> None:
        """Write the rules for a tap, and make it a port of the bridge, which stays closed."""
        assert isinstance(nic, TapNic)
        network, mac, mbit = self._network, self.guest.mac, self._request.mbit
        async with self._policing:
            former, binding = self._binding, Binding(nic.name, mac, self.address.ip)
            self.tap, self._binding = nic.name, binding
            # Before the rules, that a repair of flushed ones in this moment does not forget it.
            network.plugs[str(self.address.ip)] = self
            if former is None:
                await network.filter(self.all_rules())
            else:
                await network.filter(network.rules.rebind(former, binding, mbit))
        name = network.rules.bridge
        await network.namespace.run(lambda: bridge.join(name, nic.name, mac))
        if not self._has_opened:
            self._has_opened = True
            await open_ports(self, self._request)

    async def detach(self) -> None:
        """Take the rules back, and let nothing in; the address and the ports stay this VM's."""
        self.tap = None
        async with self._policing:
            await self._expel()

    async def connect(self) -> None:
        """Open the port of the bridge."""
        assert self.tap is not None
        await trio.to_thread.run_sync(bridge.open_port, self._network.control, self.tap)

    async def close(self) -> None:
        """Take back all that `attach` and later calls did."""
        async with self._policing:
            await self._expel()
        for host_port in list(self._forwards):
            await self.remove_port(host_port)

    async def _expel(self) -> None:
        self._network.plugs.pop(str(self.address.ip), None)
        if self._binding is None:
            return
        rules, ip, mbit = self._network.rules, self.address.ip, self._request.mbit
        withdrawn = [rules.withdraw(one.host_port, ip, one.guest_port) for one in self._published]
        expelled = rules.expel(self._binding, self.egress, mbit)
        self._binding = None
        try:
            await self._network.filter("\n".join([*withdrawn, expelled]))
        except OSError as error:  # somebody has flushed the rules, perhaps
            log.warning("rules were not removed", vm=self._request.vm, reason=str(error))
            self._network.has_stale_rules = True

    async def add_port(self, request: PortRequest) -> Forward:
        """Forward one more port; raise `AlreadyExistsError` or `ExhaustedError`."""

        def listen(port: int) -> LoopbackForward:
            if request.publish:
                require_free(EVERYWHERE, port)
            dial = partial(self._dial, request.guest_port)
            return LoopbackForward(port, dial, lambda: self.in_use())

        host_port, proxy = claim_port(
            self._network.ports, self._request.vm, request.host_port, listen
        )
        forward = Forward(request.guest_port, host_port, request.description, request.publish)
        self._forwards[host_port] = (forward, proxy)
        self._nursery.start_soon(proxy.run)
        try:
            await self._filter_published(self._network.rules.publish, forward)
        except BaseException:
            del self._forwards[host_port]
            self._release(host_port, proxy)
            raise
        return forward

    async def _filter_published(
        self, change: Callable[[int, ipaddress.IPv4Address, int], str], forward: Forward
    ) -> None:
        if forward.published and self._binding is not None:
            ip = self.address.ip
            await self._network.filter(change(forward.host_port, ip, forward.guest_port))

    async def _dial(self, port: int) -> trio.SocketStream:
        made = await self._network.namespace.run(socket.socket)
        connection = trio.socket.from_stdlib_socket(made)
        try:
            await connection.connect((str(self.address.ip), port))
        except BaseException:
            connection.close()
            raise
        return trio.SocketStream(connection)

    async def remove_port(self, host_port: int) -> None:
        """Forward a port no longer; raise `NotFoundError`."""
        if host_port not in self._forwards:
            raise NotFoundError(f"VM '{self._request.vm}' has no forward from port {host_port}")
        forward, proxy = self._forwards.pop(host_port)
        try:
            await self._filter_published(self._network.rules.withdraw, forward)
        finally:
            self._release(host_port, proxy)

    def _release(self, host_port: int, proxy: LoopbackForward) -> None:
        proxy.close()
        self._network.ports.give_back(host_port)

    def rename(self, vm: str) -> None:
        """Be the place of a VM that has another name now."""
        self._request = evolve(self._request, vm=vm)
        self._network.rename_lease(self.address.ip, vm)
        for host_port in self._forwards:
            self._network.ports.rename(host_port, vm)

    def all_rules(self) -> str:
        """Everything of this VM in the packet filter, to be applied to an empty one."""
        if self._binding is None:
            return ""
        rules, ip = self._network.rules, self.address.ip
        return "\n".join(
            [
                rules.admit(self._binding, self.egress, self._request.mbit),
                *(rules.publish(one.host_port, ip, one.guest_port) for one in self._published),
            ]
        )

    async def change_egress(self, egress: Egress) -> None:
        """Change what the guest may reach, open connections included."""
        rules, ip = self._network.rules, self.address.ip
        async with self._policing:
            await self._network.filter(rules.change_egress(ip, self.egress, egress))
            self.egress = egress

    async def learn(self, egress: Egress, number: int, addresses: list[str], seconds: int) -> None:
        """Let the guest reach what the n-th target of its policy was resolved to."""
        rules, ip = self._network.rules, self.address.ip
        async with self._policing:
            if self._binding is not None and self.egress is egress:
                await self._network.filter(rules.resolved(ip, number, addresses, seconds))


def _mac(ip: ipaddress.IPv4Address) -> str:
    """A locally administered address that no other VM of this network has."""
    return "02:a2:" + ":".join(f"{part:02x}" for part in ip.packed)
