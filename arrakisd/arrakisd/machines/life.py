"""One guest, awake in one VMM process, from its waking to its end.

A VM has one life at a time, and gets another when it is rolled back.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import structlog
import trio
from attrs import evolve

from arrakis_rpc.errors import ArrakisError
from arrakis_rpc.guest_api import Identity

from ..deadlines import deadline
from ..guest.agent import GuestAgent
from ..host.disks import active_layer
from ..host.vmm.interface import Saved, Vmm
from ..settings.config import Config
from ..storage.manifest import DEVICE_STATE, Manifest, new_layer_id
from ..storage.store import Store
from .standby import Standby

_CLOCK_DEADLINE = 10.0

log = structlog.get_logger()


class Life:
    """A guest that was saved as ``source``, in the process of ``standby``.

    ``layer`` is the one that it writes to. ``held`` are those that its process or its next
    snapshot needs, and ``frozen``, of those, what no snapshot has yet. A life that is
    ``over`` is ended by who woke it.
    """

    agent: GuestAgent

    def __init__(self, vm: str, source: Manifest, standby: Standby) -> None:
        self.vm = vm
        self.source = source
        self.standby = standby
        self.layer = new_layer_id()
        self.held: list[str] = []
        self.frozen: list[str] = []
        self.over = trio.Event()
        self._conversation = trio.CancelScope()
        self._woken: float | None = None
        self._paused: float | None = None
        self._hostname = ""

    @property
    def vmm(self) -> Vmm:
        """The process."""
        return self.standby.vmm

    @property
    def directory(self) -> Path:
        """A directory of this life alone, which goes with the process."""
        return self.standby.directory

    @property
    def disk(self) -> Path:
        """The file of the disk layer that the guest writes to."""
        return active_layer(self.directory, self.layer)

    @property
    def is_awake(self) -> bool:
        """Whether the guest has been woken already."""
        return self._woken is not None

    async def wake(self, store: Store, config: Config) -> None:
        """Let the guest run; it is still who it was."""

        def make_layer() -> None:
            shutil.copyfile(store.empty_layer(self.source), self.disk)
            config.give_to_vmm(self.disk)

        await trio.to_thread.run_sync(make_layer)
        saved = Saved(
            device_state=store.directory(self.source) / DEVICE_STATE,
            pages=store.page_files(self.source.layers),
            disk=self.disk,
        )
        self._woken = await self.vmm.wake(saved)

    async def settle(
        self, nursery: trio.Nursery, identify: Callable[[float], Identity], limit: float
    ) -> None:
        """Open the session with the agent, and make the guest a machine of its own.

        ``identify`` gives the identity of one that has slept for some seconds.
        """
        assert self._woken is not None
        token = bytes.fromhex(self.source.resync_token)
        self.agent = GuestAgent(self.vm, self.vmm.open_channel, token)
        nursery.start_soon(self._converse)
        asleep = self._woken - self.source.halted if self.vmm.clocks_stand else 0.0
        identity = identify(asleep)
        await self.agent.call_first("identity.apply", identity, limit)
        self._hostname = identity.hostname
        if not self.vmm.clocks_stand:
            await self.catch_up()

    async def _converse(self) -> None:
        with self._conversation:
            await self.agent.run()

    def kill(self) -> None:
        """End the guest at once."""
        self._conversation.cancel()  # first, or that it breaks would be news
        self.vmm.kill()

    async def pause(self) -> None:
        """Halt a guest that has settled, until it is to `become` another one."""
        self._paused = await self.vmm.pause()

    async def become(self, vm: str, identify: Callable[[float], Identity], limit: float) -> None:
        """Let a guest that was paused go on, as another machine than it was."""
        assert self._paused is not None
        self.vm = self.agent.vm = vm
        woken = await self.vmm.resume()
        asleep = woken - self._paused if self.vmm.clocks_stand else 0.0
        with deadline(limit, f"naming VM '{vm}'"):
            identity = identify(asleep)
            await self.agent.call("identity.apply", identity)
            self._hostname = identity.hostname
        if not self.vmm.clocks_stand:
            await self.catch_up()

    async def rename(self, identity: Identity) -> None:
        """Tell the guest its host name, unless it knows; its network stays what it is."""
        if identity.hostname != self._hostname:
            await self.agent.call("identity.apply", evolve(identity, network=None))
            self._hostname = identity.hostname

    async def catch_up(self) -> None:
        """Set the clock of a guest that stood still; that it is late breaks nothing else."""
        try:
            with trio.fail_after(_CLOCK_DEADLINE):
                await self.agent.set_clock()
        except (ArrakisError, trio.TooSlowError) as error:
            log.warning("the guest's clock is late", vm=self.vm, reason=str(error))
