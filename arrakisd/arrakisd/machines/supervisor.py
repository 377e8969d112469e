"""All VMs: names, starts, ends, and the boundary that keeps one's failure from the others."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import structlog
import trio
from attrs import evolve

from arrakis_rpc.daemon_api import VmLimits
from arrakis_rpc.errors import AlreadyExistsError, ArrakisError, NotFoundError
from arrakis_rpc.network_api import VmNetwork

from ..host.net.interface import NoNetwork
from ..storage.manifest import Manifest
from ..storage.suspended import read_suspended
from ..wire.peer import domain_error_in
from .admission import Need, Progress, Room
from .events import Events
from .machine import Machine
from .pool import Pool
from .states import VmState
from .surroundings import Surroundings
from .warm import WarmGuests

_UNDO_DEADLINE = 10.0
_RETRY = 60.0
_AS_BEFORE = VmNetwork()

log = structlog.get_logger()


class Supervisor:
    """Owns the nursery in which all VMs live; they outlive the calls that started them."""

    def __init__(
        self,
        nursery: trio.Nursery,
        surroundings: Surroundings,
        guests: WarmGuests,
        pool: Pool,
        events: Events,
    ) -> None:
        self._nursery = nursery
        self._surroundings = surroundings
        self._guests = guests
        self.pool = pool
        self._events = events
        self._machines: dict[str, Machine] = {}
        self._reserved: set[str] = set()
        self._to_be: set[str] = set()  # of these, the names of VMs that are new
        self._overruns: dict[Machine, str] = {}  # why some are being ended
        self._admission = surroundings.admission
        self._admission.on_waiting = self._tell_of_waiting
        # More starts at once than this only slow each other down.
        self._starting = trio.CapacityLimiter(max(2, os.cpu_count() or 1))

    def _tell_of_waiting(self, vm: str, need: Need, free: Need) -> None:
        needed_mib, free_mib = need.memory_mib, free.memory_mib
        self._events.publish("vm.waiting", vm, needed_mib=needed_mib, free_mib=free_mib)

    @property
    def waiting_turns(self) -> int:
        """How many starts have room, and wait until others are done with theirs."""
        return self._starting.statistics().tasks_waiting

    @property
    def machines(self) -> list[Machine]:
        """All VMs, in the order of their creation."""
        return list(self._machines.values())

    def states(self) -> list[VmState]:
        """The states of all VMs."""
        return [machine.states.state for machine in self._machines.values()]

    def get(self, name: str) -> Machine:
        """Give a VM; raise `NotFoundError`."""
        try:
            return self._machines[name]
        except KeyError:
            there = ", ".join(sorted(self._machines)[:10])
            raise NotFoundError(
                f"there is no VM '{name}'",
                vm=name,
                hint=f"there are: {there}" if there else "there is none; start one",
            ) from None

    def find(self, name: str) -> Machine | None:
        """Give a VM, if there is one of that name."""
        return self._machines.get(name)

    def is_taken(self, name: str) -> bool:
        """Whether a VM has a name, or is about to get it."""
        return name in self._machines or name in self._reserved

    @contextmanager
    def reserve(self, names: Iterable[str]) -> Iterator[None]:
        """Keep names for new VMs; all or none.

        Raises `AlreadyExistsError`, or `ExhaustedError` if there may not be so many VMs.
        Decided without waiting, so of two callers one wins.
        """
        names = list(names)
        with self._kept(names):
            there = {
                name
                for name, machine in self._machines.items()
                if machine.states.state is not VmState.STOPPED
            }
            self._surroundings.quotas.check_vms(there | self._to_be, names)
            self._to_be.update(names)
            try:
                yield
            finally:
                self._to_be.difference_update(names)

    @contextmanager
    def _kept(self, names: list[str], instead_of: Machine | None = None) -> Iterator[None]:
        """Keep names from others; those of VMs are taken, but for one whose place is."""
        holders = {name: self._machines.get(name, instead_of) for name in names}
        taken = [
            name for name in names if name in self._reserved or holders[name] is not instead_of
        ]
        if taken or len(set(names)) < len(names):
            name = (taken or names)[0]
            raise AlreadyExistsError(
                f"a VM '{name}' exists already",
                vm=name,
                hint=self._way_out(name),
            )
        self._reserved.update(names)
        try:
            yield
        finally:
            self._reserved.difference_update(names)

    def _way_out(self, name: str) -> str:
        machine = self._machines.get(name)
        if machine is not None and machine.states.state is VmState.SUSPENDED:
            return "that VM is suspended: resume or destroy it, or choose another name"
        return "choose another name, or destroy that VM"

    async def wake(
        self,
        name: str,
        source: Manifest,
        wish: VmNetwork = _AS_BEFORE,
        limits: VmLimits | None = None,
        *,
        room: Room | None = None,
        tell: Progress | None = None,
    ) -> Machine:
        """Start a VM under a reserved name; on error or cancellation nothing of it is left.

        Without ``room`` of its own it waits for some, of which it can ``tell``.
        """
        machine = Machine(name, source, self._guests, self._surroundings, wish, limits=limits)
        async with self._surroundings.quotas.disk(0):
            pass  # what a guest writes is not stopped, but more of them are not let write
        if room is None:
            room = await self._admission.room(name, Need.of(source.shape), tell)
        machine.room = room
        try:
            with self.pool.out_of_the_way():
                async with self._starting:
                    await self._start(machine)
        except BaseException:
            room.give_back()
            raise
        log.info("VM started", vm=name, source=source.id)
        self._events.publish("vm.started", name, snapshot=machine.info().snapshot)
        return machine

    async def rooms(
        self, names: list[str], each: Manifest, tell: Progress | None = None
    ) -> list[Room]:
        """Take room for VMs, for all or none, as `wake` does for one."""
        return await self._admission.rooms(names, Need.of(each.shape), tell)

    async def _start(self, machine: Machine) -> None:
        machine.on_timeout = lambda: self._nursery.start_soon(self._time_out, machine)
        machine.on_heartbeat = partial(self._note_heartbeat, machine)
        self._machines[machine.name] = machine
        try:
            await self._nursery.start(self._live, machine)
        except BaseException:
            if machine.states.state in (VmState.RUNNING, VmState.PAUSED):
                # It came up in the moment in which its caller was cancelled.
                with trio.move_on_after(_UNDO_DEADLINE, shield=True):
                    await machine.end()
            self._forget(machine)
            raise

    async def _live(self, machine: Machine, task_status: trio.TaskStatus[None]) -> None:
        # For this task and all that it starts: those of the driver, the agent's session ...
        structlog.contextvars.bind_contextvars(vm=machine.name)
        await machine.run(task_status)
        kind = "vm.failed" if machine.failure else "vm.stopped"
        reason = machine.failure.reason if machine.failure else self._overruns.pop(machine, None)
        log.info("VM ended", reason=reason)
        self._events.publish(kind, machine.name, reason=reason)

    @asynccontextmanager
    async def aside(self, sources: list[Manifest]) -> AsyncIterator[list[Machine]]:
        """Wake guests for the length of a block: in no list, and connected to nothing."""
        alone = evolve(self._surroundings, network=NoNetwork())
        machines = [
            Machine(f"aside-{secrets.token_hex(8)}", source, self._guests, alone, _AS_BEFORE)
            for source in sources
        ]
        largest = max(sources, key=lambda source: source.shape.memory_mib)
        rooms = await self.rooms([machine.name for machine in machines], largest)
        try:
            with self.pool.out_of_the_way():
                async with trio.open_nursery() as nursery:
                    for machine in machines:
                        nursery.start_soon(self._start_aside, machine)
            yield machines
        finally:
            with trio.move_on_after(_UNDO_DEADLINE, shield=True):
                for machine in machines:
                    if machine.states.state is VmState.RUNNING:
                        await machine.end()
            for room in rooms:
                room.give_back()

    async def _start_aside(self, machine: Machine) -> None:
        async with self._starting:
            await self._nursery.start(machine.run)

    async def take_over(self, may_wake: Callable[[Manifest], Awaitable[None]]) -> None:
        """Take the VMs over that a former daemon has left suspended.

        Those that it suspended at its own end go on, in the background, unless ``may_wake``
        raises an `ArrakisError`.
        """
        store = self._surroundings.store
        for manifest in sorted(store.suspended.values(), key=lambda one: one.created, reverse=True):
            directory = store.directory(manifest)
            try:
                vm = await trio.to_thread.run_sync(read_suspended, directory, manifest)
            except ArrakisError as error:
                log.warning("a suspended VM is damaged", vm=manifest.vm, reason=str(error))
                store.damaged[directory] = str(error)
                continue
            if vm.name in self._machines:  # the daemon died while one took the other's place
                await trio.to_thread.run_sync(store.delete, manifest)
                continue
            machine = Machine(vm.name, manifest, self._guests, self._surroundings, _AS_BEFORE, vm)
            try:
                await self._start(machine)
            except Exception as error:  # noqa: BLE001 -- the others, and the daemon, begin
                problem = str(domain_error_in(error) or error)
                log.warning("a suspended VM cannot be taken over", vm=vm.name, reason=problem)
                store.damaged[directory] = f"suspended VM '{vm.name}': {problem}"
                continue
            if vm.resumes:
                self._nursery.start_soon(self._resume_by_itself, machine, may_wake)

    async def _resume_by_itself(
        self, machine: Machine, may_wake: Callable[[Manifest], Awaitable[None]]
    ) -> None:
        try:
            await may_wake(machine.stands_on)
            await self.resume(machine)
        except Exception as error:  # noqa: BLE001 -- of no concern for the other VMs
            problem = str(domain_error_in(error) or error)
            log.warning("VM stays suspended", vm=machine.name, reason=problem)

    async def suspend(self, machine: Machine) -> None:
        """Keep a VM on disk, and end its process."""
        await machine.suspend()
        log.info("VM suspended", vm=machine.name)
        self._events.publish("vm.suspended", machine.name, reason=None)

    async def _time_out(self, machine: Machine) -> None:
        """Do what is to be done with a VM that has reached a limit, unless somebody was quicker."""
        limits = machine.limits
        reason, action = limits.overrun(), limits.values.on_timeout
        if reason is None or machine.ended.is_set():
            return
        log.info("VM has reached a limit", vm=machine.name, reason=reason, action=action)
        try:
            if action == "suspend":
                await self._suspend_overdue(machine, reason)
                return
            self._overruns[machine] = reason
            if action == "destroy":
                await self.destroy(machine)
            else:
                await machine.shut_down()
        except Exception as error:  # noqa: BLE001 -- of no concern for the other VMs
            problem = str(domain_error_in(error) or error)
            log.warning("VM goes on beyond its limit", vm=machine.name, reason=problem)
        finally:
            self._overruns.pop(machine, None)

    async def _suspend_overdue(self, machine: Machine, reason: str) -> None:
        if await machine.suspend(unless=lambda: machine.limits.overrun() is None):
            log.info("VM suspended", vm=machine.name)
            self._events.publish("vm.suspended", machine.name, reason=reason)

    def _note_heartbeat(self, machine: Machine, is_silent: bool) -> None:
        """Tell whether a guest has become silent, or answers again, and act if it is to be."""
        name = machine.name
        if not is_silent:
            log.info("VM answers again", vm=name)
            self._events.publish("vm.responsive", name)
            return
        action, reason = machine.limits.values.on_unresponsive, None
        if action == "restore" and not self._surroundings.store.ancestors(machine.stands_on):
            action, reason = "leave", "it has no snapshot to go back to"
        log.warning("VM does not answer", vm=name, action=action, reason=reason)
        self._events.publish("vm.unresponsive", name, action=action, reason=reason)
        if action != "leave":
            self._nursery.start_soon(self._mend, machine)

    async def _mend(self, machine: Machine) -> None:
        """Do what is to be done with a VM whose guest is silent, until it is done."""
        while machine.unresponsive_since is not None:
            try:
                await self._mend_now(machine)
                return
            except Exception as error:  # noqa: BLE001 -- of no concern for the other VMs
                problem = str(domain_error_in(error) or error)
                log.warning("VM that does not answer is left", vm=machine.name, reason=problem)
            await trio.sleep(_RETRY)

    async def _mend_now(self, machine: Machine) -> None:
        reason, action = "its guest did not answer", machine.limits.values.on_unresponsive
        past = self._surroundings.store.ancestors(machine.stands_on)
        if action == "destroy":
            self._overruns[machine] = reason
            await self.destroy(machine)
        elif (
            action == "restore"
            and past
            and await machine.rollback(past[0], lambda: machine.unresponsive_since is None)
        ):
            told = {"snapshot": past[0].id, "reason": reason}
            self._events.publish("vm.rolled_back", machine.name, **told)

    async def resume(self, machine: Machine) -> None:
        """Wake a suspended VM; it is the same as before."""
        room = await self._admission.room(machine.name, Need.of(machine.stands_on.shape))
        try:
            with self.pool.out_of_the_way():
                async with self._starting:
                    await machine.resume(room)
        finally:
            if machine.room is not room:
                room.give_back()
        log.info("VM resumed", vm=machine.name)
        self._events.publish("vm.resumed", machine.name)

    async def destroy(self, machine: Machine) -> None:
        """End a VM and forget it, and what is stored of it while it is suspended."""
        await machine.end()
        await machine.forget()
        self._forget(machine)
        self._events.publish("vm.destroyed", machine.name)

    def _forget(self, machine: Machine) -> None:
        if self._machines.get(machine.name) is machine:
            del self._machines[machine.name]

    async def rename(self, machine: Machine, name: str, *, replace: bool) -> None:
        """Give a VM another name; with ``replace`` that of a VM which is destroyed for it.

        Raises `AlreadyExistsError`. The name is always that of the one or of the other.
        """
        former, replaced = machine.name, self._machines.get(name) if replace else None
        if replaced is machine:
            replaced = None

        def enter() -> None:
            self._machines = {
                name if one is machine else key: one
                for key, one in self._machines.items()
                if one is not replaced
            }

        with self._kept([name], instead_of=replaced):
            await machine.rename(name, enter)
        if replaced is not None:
            with trio.move_on_after(_UNDO_DEADLINE, shield=True):
                await self.destroy(replaced)
        self._events.publish("vm.renamed", name, former=former)

    async def suspend_all(self) -> None:
        """At the daemon's end, suspend what the next one is to go on with, if the settings say so.

        What could not be suspended, or not in time, is left as it is.
        """
        config = self._surroundings.config
        if config.on_shutdown != "suspend":
            return
        alive = (VmState.RUNNING, VmState.PAUSED)
        with trio.move_on_after(config.suspend_timeout, shield=True) as time_limit:
            async with trio.open_nursery() as nursery:
                for machine in self.machines:
                    if machine.states.state in alive:
                        nursery.start_soon(self._suspend_for_next, machine)
        if time_limit.cancelled_caught:
            lost = [one.name for one in self.machines if one.states.state in alive]
            log.warning("VMs were not suspended in time, and are stopped", names=lost)

    async def _suspend_for_next(self, machine: Machine) -> None:
        async with self._starting:
            try:
                await machine.suspend(resumes=True)
            except Exception as error:  # noqa: BLE001 -- one that cannot be does not end the others
                reason = str(domain_error_in(error) or error)
                log.warning(
                    "VM cannot be suspended, and is stopped", vm=machine.name, reason=reason
                )
            else:
                log.info("VM suspended", vm=machine.name)
                self._events.publish("vm.suspended", machine.name, reason=None)

    async def end_all(self) -> None:
        """End all VMs; those that are suspended are there for the next daemon."""
        async with trio.open_nursery() as nursery:
            for machine in self.machines:
                nursery.start_soon(machine.end)

    async def destroy_all(self) -> None:
        """End and forget all VMs."""
        async with trio.open_nursery() as nursery:
            for machine in self.machines:
                nursery.start_soon(self.destroy, machine)
