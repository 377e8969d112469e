"""Giving the guest's interface its addresses."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from arrakis_rpc.errors import GuestError, InvalidParamsError, NotFoundError
from arrakis_rpc.guest_api import Network

from .tools import RunTool


class Networks:
    """Configures interfaces found under ``root``, by one run of ``ip``."""

    def __init__(self, root: Path, run_tool: RunTool) -> None:
        self._root = root
        self._run_tool = run_tool

    async def configure(self, network: Network) -> None:
        """Set addresses, route and name servers; raise `NotFoundError` if no such interface."""
        interface = self._find_interface(network.mac)
        try:
            lines = _batch(interface, network)
            servers = [str(ipaddress.ip_address(server)) for server in network.dns]
        except ValueError as error:
            raise InvalidParamsError(f"network: {error}") from None
        status, output = await self._run_tool(("ip", "-batch", "-"), "\n".join(lines).encode())
        if status:
            text = output.decode(errors="replace").strip()
            raise GuestError(f"ip cannot configure {interface}: {text}")
        if servers:
            self._write_resolver(servers)

    def _find_interface(self, mac: str) -> str:
        wanted = mac.lower()
        for interface in sorted((self._root / "sys/class/net").iterdir()):
            if (interface / "address").read_text().strip() == wanted:
                return interface.name
        raise NotFoundError(f"no network interface has the address {mac[:40]!r}")

    def _write_resolver(self, servers: list[str]) -> None:
        # By a rename: the name is often a link to a file that a resolver service owns.
        path = self._root / "etc/resolv.conf"
        fresh = path.with_name(".resolv.conf.arrakis")
        fresh.write_text("".join(f"nameserver {server}\n" for server in servers))
        fresh.replace(path)


def _batch(interface: str, network: Network) -> list[str]:
    address = ipaddress.ip_interface(network.address)
    lines = [
        f"address flush dev {interface} scope global",
        f"address replace {address.with_prefixlen} dev {interface}",
        f"link set dev {interface} up",
    ]
    if network.gateway is not None:
        gateway = ipaddress.ip_address(network.gateway)
        lines.append(f"route replace default via {gateway} dev {interface}")
    return lines
