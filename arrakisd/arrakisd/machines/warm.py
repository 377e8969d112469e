"""Guests that were woken ahead, and wait for a name.

Of what a start takes, most is the emulator's: it translates each piece of the guest's code
when that runs for the first time. A *warm* guest is one of a template that has done already
what a start and a first command do. It is a machine of its own, connected to nothing, and
paused, until a caller gives it the identity that it keeps.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
import trio

from arrakis_rpc.errors import VmmError
from arrakis_rpc.guest_api import Identity
from arrakis_rpc.network_api import Egress

from ..guest.exercise import exercise
from ..guest.identity import make_identity
from ..storage.manifest import Manifest
from .admission import Need
from .life import Life
from .pool import Pool, Ready, Stock
from .standby import Standbys
from .surroundings import Surroundings

_NOBODY = "warm"
_EXERCISE_DEADLINE = 60.0

log = structlog.get_logger()


class WarmGuest(Ready):
    """A guest of a template, awake but paused."""

    life: Life

    @property
    def pid(self) -> int:
        """Its process."""
        return self.life.vmm.pid


class WarmGuests(Stock[WarmGuest]):
    """The guests that were woken ahead; and a way to be woken for those that were not."""

    def __init__(
        self, nursery: trio.Nursery, pool: Pool, surroundings: Surroundings, standbys: Standbys
    ) -> None:
        super().__init__(nursery, pool, surroundings.config.pool.warm)
        self._config = surroundings.config
        self._store = surroundings.store
        self._network = surroundings.network
        self._standbys = standbys

    def memory_mib(self, template: Manifest) -> int:
        """As much as a VM."""
        return Need.of(template.shape).memory_mib

    def prepare(self, template: Manifest) -> WarmGuest:
        """Wake a guest for whoever may come."""
        return self.launch(WarmGuest(template), ahead=True)

    @asynccontextmanager
    async def take(self, vm: str, source: Manifest, egress: Egress) -> AsyncIterator[Life]:
        """Give a life to be for a guest that was saved as ``source``, for the length of a block.

        Raises what makes its process fail, inside of the block too.
        """
        if source.is_template:
            template = self._store.template(source.id)
            picked = self.pick(template, lambda one: self._suits(one, egress))
            if picked is not None:
                self._pool.note_use(template)
                async with self.lend(picked):
                    log.info("warm guest taken", pid=picked.pid)
                    yield picked.life
                return
        async with self._standbys.take(source, egress) as standby:
            yield Life(vm, source, standby)

    def _suits(self, warm: WarmGuest, egress: Egress) -> bool:
        return self._network.suits(warm.life.standby.nic, egress)

    async def keep(self, warm: WarmGuest, usable: Callable[[], None]) -> None:
        """Wake the guest and let it do what is done first; then pause it until it is taken."""
        template = warm.template
        egress = self._config.network.default_egress
        async with self._standbys.take(template, egress) as standby:
            warm.life = life = Life(_NOBODY, template, standby)
            with self._store.hold(life.held):
                life.source = self._store.current(template, life.held)
                async with trio.open_nursery() as nursery:
                    await trio.to_thread.run_sync(self._store.verify, template)
                    await life.wake(self._store, self._config)
                    with trio.fail_after(_EXERCISE_DEADLINE):
                        await life.settle(nursery, self._identify, self._config.start_timeout)
                        await exercise(life.agent, self._network.trial)
                    await life.pause()
                    usable()
                    log.info("guest woken ahead", pid=warm.pid)
                    end = await life.vmm.wait()
                    if warm not in self.waiting:
                        await trio.sleep_forever()  # its taker knows, and may have questions
                    raise VmmError("\n".join([end.how, *life.vmm.last_words()]))

    def _identify(self, asleep: float) -> Identity:
        return make_identity(_NOBODY, self._network.trial, asleep)
