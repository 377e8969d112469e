"""The operations on the daemon itself."""

from __future__ import annotations

import os
import time

import trio

from arrakis_rpc import PROTOCOL_VERSION
from arrakis_rpc import daemon_api as api
from arrakis_rpc.errors import UnsupportedError
from arrakis_rpc.guest_api import Nothing

from .. import __version__
from ..host.vmm.hypervisors import Hypervisor
from ..machines.states import VmState
from ..machines.supervisor import Supervisor
from ..machines.surroundings import Surroundings
from ..settings.config import host_memory_mib
from ..upkeep.doctor import examine
from ..upkeep.health import HealthWatch
from .call import Call

_DELEGATE = "run it by its unit, or: systemd-run --scope -p Delegate=yes arrakisd"


class SystemOperations:
    """``system.*``."""

    def __init__(
        self,
        surroundings: Surroundings,
        hypervisor: Hypervisor,
        supervisor: Supervisor,
        health: HealthWatch,
    ) -> None:
        self._surroundings = surroundings
        self._store = surroundings.store
        self._hypervisor = hypervisor
        self._supervisor = supervisor
        self._health = health
        self._began = trio.current_time()

    async def system_hello(self, params: api.SystemHello, _: Call) -> api.SystemHelloResult:
        """Agree on a version of the protocol."""
        if PROTOCOL_VERSION not in params.versions:
            raise UnsupportedError(
                f"this daemon speaks version {PROTOCOL_VERSION} of the protocol, "
                f"the client {params.versions}",
                hint="install client and daemon of the same release",
            )
        return api.SystemHelloResult(version=PROTOCOL_VERSION, daemon=__version__)

    async def system_health(self, _: Nothing, __: Call) -> api.SystemHealth:
        """Answer from memory; touches no VM."""
        states = [machine.states.state for machine in self._supervisor.machines]
        problems = self._health.problems()
        return api.SystemHealth(
            status="degraded" if problems else "healthy",
            timestamp=time.time(),
            uptime=trio.current_time() - self._began,
            vms={state.value: states.count(state) for state in VmState},
            reasons=problems,
        )

    async def system_info(self, _: Nothing, __: Call) -> api.SystemInfo:
        """Describe this daemon."""
        config = self._surroundings.config
        return api.SystemInfo(
            daemon=__version__,
            pid=os.getpid(),
            state_dir=config.state_dir,
            vmm=f"{self._hypervisor.name} {self._hypervisor.version}",
            accelerator=self._hypervisor.verdict.accelerator,
            vcpus=os.cpu_count() or 1,
            memory_mib=host_memory_mib(),
            default_vcpus=config.vcpus,
            default_memory_mib=config.memory_mib,
            default_disk_mib=config.disk_mib,
        )

    async def system_doctor(self, _: Nothing, __: Call) -> api.SystemDoctor:
        """Examine this host."""
        usual, verdict = self._hypervisor.name, self._hypervisor.verdict
        checks = await trio.to_thread.run_sync(examine, self._surroundings.config, usual)
        checks.append(
            api.Check(
                name="accelerator",
                ok=True,
                detail=f"{verdict.accelerator}: {verdict.reason}",
            )
        )
        limited, missing = self._surroundings.groups.describe()
        checks.append(
            api.Check(
                name="control groups",
                ok=missing is None,
                detail=missing or f"the kernel limits {limited}",
                required=False,
                fix=_DELEGATE if missing else None,
            )
        )
        checks += [
            api.Check(name=f"stored data in {path}", ok=False, detail=reason, required=False)
            for path, reason in self._store.damaged.items()
        ]
        checks += [
            api.Check(f"{one.part} now", ok=False, detail=one.detail, required=False)
            for one in self._health.problems()
            if one.part not in ("store", "disk")  # which are there already
        ]
        return api.SystemDoctor(checks=checks)
