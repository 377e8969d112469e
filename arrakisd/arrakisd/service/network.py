"""The operations on what leads into a VM, and what a VM may reach."""

from __future__ import annotations

from arrakis_rpc import daemon_api as api
from arrakis_rpc.guest_api import Nothing
from arrakis_rpc.network_api import Forward

from ..machines.supervisor import Supervisor
from .call import Call


class NetworkOperations:
    """``port.*`` and ``egress.*``."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def port_list(self, params: api.VmName, _: Call) -> api.PortList:
        """List the ports that lead into a VM."""
        return api.PortList(ports=self._supervisor.get(params.name).plug.forwards)

    async def port_add(self, params: api.PortAdd, _: Call) -> Forward:
        """Forward one more port into a VM."""
        return await self._supervisor.get(params.vm).plug.add_port(params.port)

    async def port_remove(self, params: api.PortRemove, _: Call) -> Nothing:
        """Forward a port no longer."""
        await self._supervisor.get(params.vm).plug.remove_port(params.host_port)
        return Nothing()

    async def egress_set(self, params: api.EgressSet, _: Call) -> Nothing:
        """Change what a VM may reach, open connections included."""
        await self._supervisor.get(params.vm).plug.change_egress(params.egress)
        return Nothing()
