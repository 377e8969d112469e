"""Room for VMs: who comes when there is none waits in a queue, and for so long only.

A VM takes room for as long as it has a process: what its guest may use of memory, whether it
does or not, and its vCPUs. Most guests use little of it, so more is given out than there is:
``memory_overcommit`` times as much. What was made ready ahead takes none: it gives way.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable

import structlog
import trio
from attrs import define, field, frozen

from arrakis_rpc.errors import ExhaustedError

from ..settings.config import host_memory_mib
from ..settings.limits import LimitsConfig
from ..storage.manifest import Shape

PROCESS_MIB = 64  # of a VMM process, beside its guest's memory
_RESERVED = 8  # the part of the host's memory that is left to others, by default
_VCPUS_PER_CORE = 32
_NAMED = 5

Progress = Callable[[str], Awaitable[None]]

log = structlog.get_logger()


@frozen
class Need:
    """Memory, in MiB, and vCPUs."""

    memory_mib: int
    vcpus: int

    @classmethod
    def of(cls, shape: Shape) -> Need:
        """Give what a VM of a shape takes."""
        return cls(shape.memory_mib + PROCESS_MIB, shape.vcpus)

    def times(self, count: int) -> Need:
        """Give what so many VMs take."""
        return Need(self.memory_mib * count, self.vcpus * count)

    def __str__(self) -> str:
        return f"{self.memory_mib} MiB of memory and {self.vcpus} vCPU{'s' * (self.vcpus != 1)}"


@define(eq=False)
class Room:
    """What one VM takes, until it is given back."""

    vm: str
    need: Need
    _back: Callable[[Room], None]

    def give_back(self) -> None:
        """Let others have it. Once more does nothing."""
        self._back(self)


@define(eq=False)
class _Waiter:
    vms: list[str]
    each: Need
    rooms: list[Room] | None = None
    admitted: trio.Event = field(factory=trio.Event)

    @property
    def need(self) -> Need:
        return self.each.times(len(self.vms))


class Admission:
    """How much room there is, who has it, and who waits for it; first come, first served."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._taken: list[Room] = []
        self._queue: deque[_Waiter] = deque()
        self.on_change: Callable[[], None] = lambda: None
        self.on_waiting: Callable[[str, Need, Need], None] = lambda *_: None
        self.on_admitted: Callable[[float], None] = lambda _: None

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        return len(self._queue)

    @property
    def memory_mib(self) -> int:
        """How much memory all VMs together may really use."""
        host = host_memory_mib()
        return self._limits.memory_mib or host - host // _RESERVED

    @property
    def total(self) -> Need:
        """All that is given out."""
        vcpus = self._limits.vcpus or _VCPUS_PER_CORE * (os.cpu_count() or 1)
        return Need(int(self.memory_mib * self._limits.memory_overcommit), vcpus)

    @property
    def taken(self) -> Need:
        """What VMs have, or are about to."""
        needs = [room.need for room in self._taken]
        return Need(sum(one.memory_mib for one in needs), sum(one.vcpus for one in needs))

    @property
    def free(self) -> Need:
        """What nobody has; less than none if there was more when it was given out."""
        total, taken = self.total, self.taken
        return Need(total.memory_mib - taken.memory_mib, total.vcpus - taken.vcpus)

    @property
    def unclaimed_mib(self) -> int:
        """Memory that nobody has, and nobody waits for."""
        return self.free.memory_mib - sum(one.need.memory_mib for one in self._queue)

    def change(self, limits: LimitsConfig) -> None:
        """Take over other limits; VMs that are there stay."""
        self._limits = limits
        self._admit()

    async def room(self, vm: str, need: Need, tell: Progress | None = None) -> Room:
        """Take room for one VM; see `rooms`."""
        (room,) = await self.rooms([vm], need, tell)
        return room

    async def rooms(self, vms: list[str], each: Need, tell: Progress | None = None) -> list[Room]:
        """Take room for some VMs, for all of them or none, in the order of their callers.

        Who has to wait is told. Raises `ExhaustedError` if it would be for ever, if too many
        wait already, or when it was too long.
        """
        waiter = _Waiter(vms, each)
        self._check_possible(waiter)
        self._queue.append(waiter)
        self._admit()
        if waiter.rooms is None:
            await self._wait(waiter, tell)
        else:
            self.on_admitted(0.0)
        assert waiter.rooms is not None
        return waiter.rooms

    async def _wait(self, waiter: _Waiter, tell: Progress | None) -> None:
        began, longest = trio.current_time(), self._limits.queue_timeout
        try:
            if len(self._queue) > self._limits.queue:
                raise self._refusal(waiter, f"{self._limits.queue} others wait for that already")
            log.info("waits for room", vms=waiter.vms, needed=str(waiter.need), free=str(self.free))
            for vm in waiter.vms:
                self.on_waiting(vm, waiter.need, self.free)
            with trio.move_on_after(longest):
                if tell is not None:
                    await tell(f"waiting for {waiter.need}; free: {self.free}")
                await waiter.admitted.wait()
            if waiter.rooms is None:
                raise self._refusal(waiter, f"there was no more for {longest:g} s")
        except BaseException:
            for room in waiter.rooms or ():
                room.give_back()
            raise
        finally:
            if waiter.rooms is None:
                self._queue.remove(waiter)
                self._admit()  # who came later may need less
        waited = trio.current_time() - began
        self.on_admitted(waited)
        log.info("has room", vms=waiter.vms, waited=round(waited, 1))

    def _admit(self) -> None:
        while self._queue and self._fits(self._queue[0].need):
            waiter = self._queue.popleft()
            waiter.rooms = [Room(vm, waiter.each, self._give_back) for vm in waiter.vms]
            self._taken += waiter.rooms
            waiter.admitted.set()
        self.on_change()

    def _give_back(self, room: Room) -> None:
        if room in self._taken:
            self._taken.remove(room)
            self._admit()

    def _fits(self, need: Need) -> bool:
        free = self.free
        return need.memory_mib <= free.memory_mib and need.vcpus <= free.vcpus

    def _check_possible(self, waiter: _Waiter) -> None:
        total = self.total
        if waiter.each.memory_mib > self.memory_mib:
            raise self._refusal(waiter, f"one VM may have {self.memory_mib} MiB at most")
        if waiter.need.memory_mib > total.memory_mib or waiter.need.vcpus > total.vcpus:
            raise self._refusal(waiter, f"all VMs together may have {total}")

    def _refusal(self, waiter: _Waiter, reason: str) -> ExhaustedError:
        names = ", ".join(f"'{vm}'" for vm in waiter.vms[:_NAMED])
        there = sorted(self._taken, key=lambda room: -room.need.memory_mib)
        holders = ", ".join(room.vm for room in there[:_NAMED])
        way_out = f"destroy or suspend a VM ({holders}), " if holders else ""
        return ExhaustedError(
            f"VM {names} needs {waiter.need}; free: {self.free}; {reason}",
            vm=waiter.vms[0],
            hint=f"{way_out}ask for less, or raise memory_mib or vcpus in [limits]",
            needed_mib=waiter.need.memory_mib,
            free_mib=self.free.memory_mib,
        )
