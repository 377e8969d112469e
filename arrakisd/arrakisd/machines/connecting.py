"""How a VM is connected: what it asks for, what is said of it, and what is saved of that."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from arrakis_rpc.daemon_api import PortForward
from arrakis_rpc.network_api import PortRequest, VmNetwork

from ..host.net.interface import Plug, PlugRequest
from ..storage.manifest import Manifest, SavedNetwork
from .surroundings import Surroundings


def first_request(
    vm: str, source: Manifest, wish: VmNetwork, surroundings: Surroundings
) -> PlugRequest:
    """Connect it as it is wished, else as it was when it was saved, else as all are."""
    settings, saved = surroundings.config.network, source.network
    egress = wish.egress or (saved.egress if saved else settings.default_egress)
    ports = wish.ports
    if ports is None and surroundings.network.kind != "none":
        ports = saved.ports if saved else settings.default_ports
    former = saved.ip if saved and source.vm == vm else None
    mbit = wish.mbit or (saved.mbit if saved else settings.mbit)
    return PlugRequest(vm, egress, ports or [], former, mbit)


def same_again(vm: str, request: PlugRequest, plug: Plug | None) -> PlugRequest:
    """Ask for what a VM has now, with address and the host's ports if they are free then."""
    request = evolve(request, vm=vm)
    if plug is None:
        return request
    ports = [
        PortRequest(one.guest_port, one.host_port, one.description, one.published)
        for one in plug.forwards
    ]
    ip = str(plug.address.ip)
    return evolve(request, egress=plug.egress, ports=ports, ip=ip, is_again=True)


def to_save(plug: Plug | None, mbit: int | None) -> SavedNetwork | None:
    """Give what a snapshot keeps of it."""
    if plug is None:
        return None
    # Without the host's ports: several VMs may stand on one snapshot.
    ports = [
        PortRequest(one.guest_port, description=one.description, publish=one.published)
        for one in plug.forwards
    ]
    return SavedNetwork(str(plug.address.ip), plug.egress, ports, mbit)


def described(plug: Plug | None) -> dict[str, Any]:
    """Give what `VmInfo` has of it."""
    if plug is None:
        return {}
    return {
        "ip": str(plug.address),
        "tap_device_name": plug.tap,
        "egress": plug.egress,
        "port_forwards": [
            PortForward(str(one.host_port), str(one.guest_port), one.description)
            for one in plug.forwards
        ],
    }
