"""The operations on VMs."""

from __future__ import annotations

import trio

from arrakis_rpc import daemon_api as api
from arrakis_rpc.errors import GuestError, InvalidParamsError, NotFoundError
from arrakis_rpc.guest_api import ExecSpec, Health, Nothing

from ..deadlines import deadline
from ..machines.admission import Room
from ..machines.events import Events
from ..machines.machine import Machine
from ..machines.states import VmState
from ..machines.supervisor import Supervisor
from ..machines.templates import Templates
from ..storage.manifest import Manifest
from ..storage.store import Store
from .call import Call
from .pages import cut_page

_UNDO_DEADLINE = 10.0
_ENTRY_DEADLINE = 20.0
_HEALTH_DEADLINE = 10.0
_LONGEST_NAME = 63


class VmOperations:
    """``vm.*``."""

    def __init__(
        self,
        store: Store,
        supervisor: Supervisor,
        templates: Templates,
        events: Events,
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self._templates = templates
        self._events = events

    async def vm_start(self, params: api.VmStart, call: Call) -> api.VmInfo:
        """Start a VM from a template or a snapshot."""
        with self._supervisor.reserve([params.name]):
            source = await self._source(params, call)
            machine = await self._supervisor.wake(
                params.name, source, params.network, params.limits, tell=call.progress
            )
        if params.entry_point:
            await self._enter(machine, params.entry_point)
        return machine.info()

    async def _enter(self, machine: Machine, entry_point: str) -> None:
        command = ExecSpec(shell=entry_point, background=True)
        try:
            with deadline(_ENTRY_DEADLINE, f"starting the entry point of VM '{machine.name}'"):
                await machine.agent.call("exec.run", command)
        except BaseException:
            with trio.move_on_after(_UNDO_DEADLINE, shield=True):
                await self._supervisor.destroy(machine)
            raise

    async def _source(self, params: api.VmStart, call: Call) -> Manifest:
        if params.snapshot is None:
            return await self._templates.ensure(await self._templates.plan(params), call.progress)
        given = (params.image, params.kernel, params.initramfs, params.rootfs)
        if any((*given, params.vcpus, params.memory_mib, params.disk_mib)):
            raise InvalidParamsError(
                "a snapshot brings its own image, kernel and shape",
                hint="give only a name and the snapshot",
            )
        manifest = self._store.snapshot(params.snapshot)
        await self._templates.check_compatible(manifest, params.vmm)
        return manifest

    async def vm_list(self, params: api.Page, _: Call) -> api.VmList:
        """List all VMs by name."""
        machines = {machine.name: machine for machine in self._supervisor.machines}
        vms, following = cut_page(machines, params, Machine.info)
        return api.VmList(vms=vms, next=following)

    async def vm_info(self, params: api.VmName, _: Call) -> api.VmInfo:
        """Describe one VM."""
        return self._supervisor.get(params.name).info()

    async def vm_health(self, params: api.VmName, _: Call) -> Health:
        """Ask a guest how it is."""
        agent = self._supervisor.get(params.name).agent
        with trio.move_on_after(_HEALTH_DEADLINE):
            health: Health = await agent.call("agent.health", Nothing())
            return health
        raise GuestError(
            f"the guest in VM '{params.name}' did not say within {_HEALTH_DEADLINE:g} s how it is",
            vm=params.name,
            hint="it may hang or be out of memory; 'destroy' works all the same",
        )

    async def vm_stop(self, params: api.VmName, _: Call) -> api.VmInfo:
        """Shut a VM down; it stays listed as STOPPED until it is destroyed."""
        machine = self._supervisor.get(params.name)
        await machine.shut_down()
        return machine.info()

    async def vm_pause(self, params: api.VmName, _: Call) -> api.VmInfo:
        """Halt a VM's vCPUs."""
        machine = self._supervisor.get(params.name)
        await machine.pause()
        self._events.publish("vm.paused", machine.name)
        return machine.info()

    async def vm_suspend(self, params: api.VmName, _: Call) -> api.VmInfo:
        """Keep a VM on disk until it is resumed; it takes no memory meanwhile."""
        machine = self._supervisor.get(params.name)
        await self._supervisor.suspend(machine)
        return machine.info()

    async def vm_resume(self, params: api.VmName, _: Call) -> api.VmInfo:
        """Let a paused or suspended VM go on."""
        machine = self._supervisor.get(params.name)
        if machine.states.state is VmState.SUSPENDED:
            await self._templates.check_compatible(machine.stands_on)
            await self._supervisor.resume(machine)
        else:
            await machine.resume()
            self._events.publish("vm.resumed", machine.name)
        return machine.info()

    async def vm_set_limits(self, params: api.VmSetLimits, _: Call) -> api.VmInfo:
        """Change how long a VM may live."""
        machine = self._supervisor.get(params.name)
        machine.limits.change(params.limits)
        return machine.info()

    async def vm_destroy(self, params: api.VmName, _: Call) -> Nothing:
        """End a VM and forget it."""
        await self._supervisor.destroy(self._supervisor.get(params.name))
        return Nothing()

    async def vm_destroy_all(self, _: Nothing, __: Call) -> Nothing:
        """End and forget all VMs."""
        await self._supervisor.destroy_all()
        return Nothing()

    async def vm_fork(self, params: api.VmFork, call: Call) -> api.VmList:
        """Make siblings of a VM from one snapshot of it, which is not kept."""
        source = self._supervisor.get(params.name)
        names = params.names or self._fork_names(params)
        if len(names) != params.count:
            raise InvalidParamsError(f"{params.count} forks need as many names")
        siblings: list[Machine] = []

        async def wake(room: Room, moment: Manifest) -> None:
            limits = source.limits.values
            siblings.append(await self._supervisor.wake(room.vm, moment, limits=limits, room=room))

        with self._supervisor.reserve(names):
            rooms = await self._supervisor.rooms(names, source.stands_on, call.progress)
            try:
                async with source.moment() as moment, trio.open_nursery() as nursery:
                    for room in rooms:
                        nursery.start_soon(wake, room, moment)
            except BaseException:
                with trio.move_on_after(_UNDO_DEADLINE, shield=True):
                    async with trio.open_nursery() as nursery:
                        for sibling in siblings:
                            nursery.start_soon(self._supervisor.destroy, sibling)
                for room in rooms:
                    room.give_back()
                raise
        siblings.sort(key=lambda sibling: names.index(sibling.name))
        return api.VmList(vms=[sibling.info() for sibling in siblings])

    async def vm_rollback(self, params: api.VmRollback, _: Call) -> api.VmInfo:
        """Take a VM back to a snapshot that it descends from."""
        machine = self._supervisor.get(params.name)
        ancestors = self._store.ancestors(machine.stands_on)
        target = next((one for one in ancestors if one.id == params.snapshot), None)
        if target is None:
            names = ", ".join(one.id for one in ancestors[:10])
            raise NotFoundError(
                f"VM '{machine.name}' does not descend from a snapshot '{params.snapshot}'",
                vm=machine.name,
                hint=f"it descends from: {names}" if names else "take a snapshot of it first",
            )
        await machine.rollback(target)
        self._events.publish("vm.rolled_back", machine.name, snapshot=target.id)
        return machine.info()

    async def vm_rename(self, params: api.VmRename, _: Call) -> api.VmInfo:
        """Give a VM another name."""
        machine = self._supervisor.get(params.name)
        await self._supervisor.rename(machine, params.to, replace=params.replace)
        return machine.info()

    def _fork_names(self, params: api.VmFork) -> list[str]:
        names: list[str] = []
        number = 0
        while len(names) < params.count:
            number += 1
            suffix = f"-fork{number}"
            name = params.name[: _LONGEST_NAME - len(suffix)] + suffix
            if not self._supervisor.is_taken(name):
                names.append(name)
        return names
