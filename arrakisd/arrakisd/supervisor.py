"""All VMs: names, starts, ends, and the boundary that keeps one's failure from the others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import structlog
import trio

from arrakis_rpc.errors import AlreadyExistsError, NotFoundError

from .events import Events
from .host.vmm.interface import Driver
from .machine import Machine, Surroundings
from .manifest import Manifest
from .states import VmState

_UNDO_DEADLINE = 10.0

log = structlog.get_logger()


class Supervisor:
    """Owns the nursery in which all VMs live; they outlive the calls that started them."""

    def __init__(
        self, nursery: trio.Nursery, surroundings: Surroundings, driver: Driver, events: Events
    ) -> None:
        self._nursery = nursery
        self._surroundings = surroundings
        self._driver = driver
        self._events = events
        self._machines: dict[str, Machine] = {}
        self._reserved: set[str] = set()
        # More starts at once than this only slow each other down.
        self._starting = trio.CapacityLimiter(max(2, os.cpu_count() or 1))

    @property
    def machines(self) -> list[Machine]:
        """All VMs, in the order of their creation."""
        return list(self._machines.values())

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

    def is_taken(self, name: str) -> bool:
        """Whether a VM has a name, or is about to get it."""
        return name in self._machines or name in self._reserved

    @contextmanager
    def reserve(self, names: Iterable[str]) -> Iterator[None]:
        """Keep names for VMs that are about to start; all or none.

        Raises `AlreadyExistsError`. Decided without waiting, so of two callers one wins.
        """
        names = list(names)
        taken = [name for name in names if self.is_taken(name)]
        if taken or len(set(names)) < len(names):
            name = (taken or names)[0]
            raise AlreadyExistsError(
                f"a VM '{name}' exists already",
                vm=name,
                hint="choose another name, or destroy that VM",
            )
        self._reserved.update(names)
        try:
            yield
        finally:
            self._reserved.difference_update(names)

    async def wake(self, name: str, source: Manifest) -> Machine:
        """Start a VM under a reserved name; on error or cancellation nothing of it is left."""
        machine = Machine(name, source, self._driver, self._surroundings)
        async with self._starting:
            self._machines[name] = machine
            try:
                await self._nursery.start(self._live, machine)
            except BaseException:
                if machine.states.state in (VmState.RUNNING, VmState.PAUSED):
                    # It came up in the moment in which its caller was cancelled.
                    with trio.move_on_after(_UNDO_DEADLINE, shield=True):
                        await machine.end()
                self._machines.pop(name, None)
                raise
        self._events.publish("vm.started", name, snapshot=machine.info().snapshot)
        return machine

    async def _live(self, machine: Machine, task_status: trio.TaskStatus[None]) -> None:
        await machine.run(task_status)
        kind = "vm.failed" if machine.failure else "vm.stopped"
        reason = machine.failure.reason if machine.failure else None
        log.info("VM ended", vm=machine.name, reason=reason)
        self._events.publish(kind, machine.name, reason=reason)

    async def destroy(self, machine: Machine) -> None:
        """End a VM and forget it."""
        await machine.end()
        if self._machines.get(machine.name) is machine:
            del self._machines[machine.name]
        self._events.publish("vm.destroyed", machine.name)

    async def destroy_all(self) -> None:
        """End and forget all VMs."""
        async with trio.open_nursery() as nursery:
            for machine in self.machines:
                nursery.start_soon(self.destroy, machine)
