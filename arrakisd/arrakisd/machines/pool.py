"""What is made ready for callers to come: of what, how many, and when.

Each thing that is ready lives in a task of its own. A caller takes it for the length of a
block, at whose end it ends; there is no way back into the pool.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar

import structlog
import trio

from arrakis_rpc.errors import VmmError

from ..host.processes import is_child_alive, private_memory_mib
from ..host.vmm.hypervisors import Hypervisors
from ..settings.pool import PoolConfig
from ..storage.manifest import Manifest, Shape
from ..storage.store import Store
from ..wire.peer import domain_error_in
from .admission import Admission

_CLEANUP_DEADLINE = 10.0
_RETRY_DELAY = 5.0
_QUIET = 0.5  # who started a VM is about to use it
_USUAL_MIB = 32

log = structlog.get_logger()


class Ready(ABC):
    """Something on top of a template that may be made ready ahead."""

    def __init__(self, template: Manifest) -> None:
        self.template = template
        self.failure: BaseException | None = None
        self.usable = trio.Event()
        self.gone = trio.Event()
        self.scope = trio.CancelScope()

    @property
    @abstractmethod
    def pid(self) -> int:
        """The process whose memory it takes. Legal once it is usable."""

    async def wait_usable(self) -> None:
        """Wait until it can be used; raise why it never will be."""
        await self.usable.wait()
        if self.gone.is_set():
            await self.report()

    async def report(self) -> None:
        """Wait until it is gone; raise why, unless by `end`."""
        await self.gone.wait()
        if self.failure is not None or not self.scope.cancel_called:
            raise self.failure or VmmError("the VMM process was ended")

    async def end(self) -> None:
        """End it; wait until nothing of it is left."""
        self.scope.cancel()
        await self.gone.wait()


R = TypeVar("R", bound=Ready)


class Stock(ABC, Generic[R]):
    """Things of one kind: those that wait for a caller, ``size`` for each likely template."""

    def __init__(self, nursery: trio.Nursery, pool: Pool, size: int) -> None:
        self.size = size
        self.waiting: list[R] = []
        self._nursery = nursery
        self._pool = pool
        pool.stocks.append(self)

    @abstractmethod
    def memory_mib(self, template: Manifest) -> int:
        """How much memory one may come to take."""

    @abstractmethod
    def prepare(self, template: Manifest) -> R:
        """Make one for whoever may come; it joins those that wait when it is usable."""

    @abstractmethod
    async def keep(self, one: R, usable: Callable[[], None]) -> None:
        """All of one's life: call ``usable`` when it is, go on until cancelled or failed."""

    def pick(self, template: Manifest, suits: Callable[[R], bool]) -> R | None:
        """Take one out of those that wait, if there is one that suits."""
        for one in self.waiting:
            # One on the memory file of an earlier build would wake another guest.
            if one.template is template and is_child_alive(one.pid) and suits(one):
                self.waiting.remove(one)
                return one
        return None

    def launch(self, one: R, *, ahead: bool) -> R:
        """Begin one's life, of which nobody else has heard yet."""
        self._nursery.start_soon(self._live, one, ahead)
        return one

    @asynccontextmanager
    async def lend(self, one: R) -> AsyncIterator[R]:
        """Use one for the length of a block, at whose end it ends.

        Raises what makes it fail, inside of the block too.
        """
        try:
            await one.wait_usable()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.report)
                yield one
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(_CLEANUP_DEADLINE, shield=True):
                await one.end()

    async def _live(self, one: R, ahead: bool) -> None:
        def usable() -> None:
            if ahead:
                self.waiting.append(one)
            one.usable.set()

        try:
            with one.scope:
                await self.keep(one, usable)
        except* Exception as group:  # noqa: BLE001 -- raised again in the block that took it
            one.failure = group
            if ahead and (one in self.waiting or not one.usable.is_set()):
                reason = domain_error_in(group) or group
                self._pool.note_failure(f"{type(one).__name__}: {reason}")
        finally:
            if one in self.waiting:
                self.waiting.remove(one)
            one.gone.set()
            one.usable.set()
            self._pool.look_again()


class Pool:
    """Fills all stocks in the background, the first one first, when nobody waits for a VM."""

    def __init__(
        self,
        config: PoolConfig,
        store: Store,
        hypervisors: Hypervisors,
        admission: Admission,
    ) -> None:
        self._config = config
        self._admission = admission
        admission.on_change = self.look_again
        self._store = store
        self._hypervisors = hypervisors
        self.stocks: list[Stock[Any]] = []
        self._used: list[Manifest] = []  # templates, the one used last at the end
        self._callers = 0
        self._quiet_at = 0.0
        self._changed = trio.Event()
        self._has_failed = False
        self.failure: str | None = None  # of the last that was made ready

    async def run(self) -> None:
        """Make ready what is likely to be asked for, until cancelled."""
        self._used = sorted(self._store.templates.values(), key=lambda one: one.created)
        while True:
            self._changed = trio.Event()
            await self.end_unlikely()
            await self._give_way()
            if self._callers or not (lacking := self._lacking()):
                await self._changed.wait()
            elif (rest := self._quiet_at - trio.current_time()) > 0:
                await trio.sleep(rest)
            else:
                stock, template = lacking
                await stock.prepare(template).usable.wait()
                if not self._has_failed:
                    self.failure = None
            if self._has_failed:
                self._has_failed = False
                await trio.sleep(_RETRY_DELAY)

    def _likely(self) -> list[Manifest]:
        """The templates to keep something ready for, the likeliest first."""
        self._used = [template for template in self._used if self._store.has(template)]
        usable = [template for template in self._used if self._is_usable(template.shape)]
        return usable[: -self._config.shapes - 1 : -1]

    def _is_usable(self, shape: Shape) -> bool:
        """Whether its hypervisor is in use: none is tried only because somebody may come."""
        made = (shape.vmm, shape.vmm_version, shape.accelerator)
        return self._hypervisors.has_made(*made)

    def _lacking(self) -> tuple[Stock[Any], Manifest] | None:
        """Find a stock with less of a template than there should be, and may be."""
        sizes = [private_memory_mib(one.pid) for stock in self.stocks for one in stock.waiting]
        if sum(sizes) + max(sizes, default=_USUAL_MIB) > self._config.memory_mib:
            return None
        likely = self._likely()
        unclaimed = self._unclaimed_mib()
        for stock in self.stocks:
            there = [one.template for one in stock.waiting]
            for template in likely:
                fits = stock.memory_mib(template) <= unclaimed
                if fits and there.count(template) < stock.size:
                    return stock, template
        return None

    def _unclaimed_mib(self) -> int:
        """Memory that neither VMs nor what is ready may come to take."""
        ready = (stock.memory_mib(one.template) for stock in self.stocks for one in stock.waiting)
        return self._admission.unclaimed_mib - sum(ready)

    async def _give_way(self) -> None:
        """End what waits in place of VMs that have come meanwhile: the costliest first."""
        for stock in reversed(self.stocks):
            while stock.waiting and self._unclaimed_mib() < 0:
                one = stock.waiting.pop(0)
                log.info("what was made ready ahead gives way", kind=type(one).__name__)
                await one.end()

    async def end_unlikely(self) -> None:
        """End what waits for guests of a template that is gone, or long unused."""
        likely = self._likely()
        for stock in self.stocks:
            # In two steps: others look for the same while one ends.
            doomed = [one for one in stock.waiting if one.template not in likely]
            stock.waiting = [one for one in stock.waiting if one.template in likely]
            for one in doomed:
                await one.end()

    @contextmanager
    def out_of_the_way(self) -> Iterator[None]:
        """Make nothing ready during a block in which somebody waits for a VM, and shortly after."""
        self._callers += 1
        try:
            yield
        finally:
            self._callers -= 1
            self._quiet_at = trio.current_time() + _QUIET
            self.look_again()

    def note_use(self, template: Manifest) -> None:
        """Remember that somebody asked for a template, or a guest of it."""
        if template in self._used:
            self._used.remove(template)
        self._used.append(template)
        self.look_again()

    def note_failure(self, reason: str) -> None:
        """Try no more for a while."""
        self._has_failed = True
        self.failure = reason.partition("\n")[0]
        log.warning("what was made ready ahead failed", reason=reason)

    def look_again(self) -> None:
        """Notice that something has changed."""
        self._changed.set()
