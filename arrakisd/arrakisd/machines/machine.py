"""One VM, and what can be done with it while it is there.

Each change is made by the task of who asked for it, one at a time.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from uuid import uuid4

import structlog
import trio

from arrakis_rpc.errors import ArrakisError, CancelledError, InvalidStateError
from arrakis_rpc.guest_api import ExecSpec

from ..deadlines import deadline
from ..guest.identity import renamed
from ..host.processes import private_memory_mib
from ..storage.manifest import Manifest
from ..storage.suspended import SuspendedVm
from .admission import Room
from .connecting import same_again, to_save
from .life import Life
from .machine_scope import CHANGE_DEADLINE, MachineScope
from .saving import Saving, publish, publish_suspended, wait_savable
from .states import VmState

_AGENT_DEADLINE = 10.0

log = structlog.get_logger()


class Machine(MachineScope):
    """A VM, with all that can be done with it."""

    async def pause(self) -> None:
        """Halt the vCPUs. Legal while RUNNING."""
        async with self._change(VmState.RUNNING):
            with self._uncut("pausing"):
                await self._present.vmm.pause()
                self.states.move(VmState.PAUSED)

    async def resume(self, room: Room | None = None) -> None:
        """Let the vCPUs go on, or wake the guest. Legal while PAUSED or SUSPENDED.

        A guest that is woken takes ``room``, which is the caller's until it is awake.
        """
        async with self._change(VmState.PAUSED, VmState.SUSPENDED):
            if self.states.state is VmState.SUSPENDED:
                await self._wake_up(room)
                return
            with self._uncut("resuming"):
                await self._present.vmm.resume()
                self.states.move(VmState.RUNNING)
            await self._present.catch_up()
            with suppress(ArrakisError, trio.TooSlowError), trio.fail_after(_AGENT_DEADLINE):
                await self._tell_name()  # if it was renamed meanwhile

    async def rename(self, name: str, enter: Callable[[], None]) -> None:
        """Take another name, under which ``enter`` lists the VM. Legal while RUNNING or PAUSED.

        A paused guest is told when it goes on. If the guest cannot be told, nothing changes.
        """
        async with self._change(VmState.RUNNING, VmState.PAUSED):
            former, identity = self.name, self._identity
            assert identity is not None
            self._identity = renamed(identity, name)
            try:
                if self.states.state is VmState.RUNNING:
                    with deadline(_AGENT_DEADLINE, f"renaming VM '{former}'", shield=True):
                        await self._tell_name()
            except BaseException:
                self._identity = identity
                raise
            enter()
            if self.room is not None:
                self.room.vm = name
            self.name = self.states.vm = self._present.vm = self._present.agent.vm = name
            if self._plug is not None:
                self._plug.rename(name)
        log.info("VM renamed", vm=name, former=former)

    async def _tell_name(self) -> None:
        assert self._identity is not None
        await self._present.rename(self._identity)

    async def shut_down(self) -> None:
        """Ask the guest to power off, then end the VM. Legal while RUNNING or PAUSED."""
        self.states.require(VmState.RUNNING, VmState.PAUSED)
        if self.states.state is VmState.RUNNING:
            with trio.move_on_after(self._config.stop_timeout):
                await self._power_off()
        await self.end()

    async def _power_off(self) -> None:
        command = ExecSpec(argv=["systemctl", self._present.vmm.farewell], background=True)
        try:
            await self.agent.call("exec.run", command)
        except ArrakisError as error:
            log.warning("guest was not asked to power off", vm=self.name, reason=str(error))
        else:
            await self.ended.wait()

    async def rollback(self, target: Manifest, unless: Callable[[], bool] = lambda: False) -> bool:
        """Go back to a snapshot of this VM's own past. Legal while RUNNING or PAUSED.

        The VM goes on until the saved guest is awake; if that fails, it is as it was. Gives
        whether it is done: ``unless`` is asked before anything is.
        """
        async with self._change(VmState.RUNNING, VmState.PAUSED):
            if unless():
                return False
            life: Life = await self._lives.start(self._live, target)
            try:
                with self._uncut("rolling back"):
                    await self._go_on_as(life)
            finally:
                if life is not self._life:
                    life.over.set()
        return True

    async def _go_on_as(self, life: Life) -> None:
        former, self._life = self._present, life
        former.over.set()
        try:
            await former.standby.gone.wait()  # two must never have one address
            if self._plug is not None:
                await self._plug.attach(life.standby.nic, life.vmm)
                await self._plug.connect()
        except BaseException:
            self._scope.cancel()  # a machine without its network is none
            raise
        if self.states.state is VmState.PAUSED:
            self.states.move(VmState.RUNNING)

    async def snapshot(self, snapshot_id: str, label: str) -> Manifest:
        """Keep the VM as it is now. Legal while RUNNING or PAUSED; the state stays.

        The guest stands still only while its changed pages are copied. On return the
        snapshot is durable; if anything fails there is none, and the VM goes on.
        """
        async with self._change(VmState.RUNNING, VmState.PAUSED):
            life = self._present
            await wait_savable(life, self._surroundings)
            async with self._disk_for(life), self._store.scratch() as parts:
                saved = await self._save(parts, life, snapshot_id, label)
                kept = await publish(life, self._surroundings, parts, saved)
            self._surroundings.merger.request(kept)
            return kept

    @asynccontextmanager
    async def moment(self) -> AsyncIterator[Manifest]:
        """Keep the VM as it is now during a block, in which siblings can be woken from it.

        Legal while RUNNING or PAUSED; the state stays. The VM goes on at once.
        """
        async with AsyncExitStack() as kept:
            parts = await kept.enter_async_context(self._store.scratch())
            async with self._change(VmState.RUNNING, VmState.PAUSED):
                life = self._present
                await wait_savable(life, self._surroundings)
                async with self._disk_for(life):
                    manifest = await self._save(parts, life, f"fork-{secrets.token_hex(8)}", "")
                moment = self._store.moment(parts, manifest, manifest.layers, life.frozen)
                life.source, life.frozen = kept.enter_context(moment), []
                source = life.source
                kept.enter_context(self._store.hold([layer.id for layer in source.layers]))
            yield source
        self._surroundings.merger.request(source)

    def _disk_for(self, life: Life) -> AbstractAsyncContextManager[None]:
        """Save the guest in a block, if what it may take is not too much."""
        # Pages that changed are the process's own. To suspend a VM is never too much: that it
        # cannot be would cost all that is in it.
        return self._surroundings.quotas.disk(private_memory_mib(life.vmm.pid))

    async def _save(self, parts: Path, life: Life, new_id: str, label: str = "") -> Manifest:
        begin_catch_up = partial(self._begin_catch_up, life)
        network = to_save(self._plug, self._connection.mbit)
        saving = Saving(new_id, label, network, begin_catch_up, self._scope.cancel)
        try:
            return await saving.save(life, self._surroundings, parts)
        finally:
            # The guest may have stood still, whatever came of it and of its caller.
            if self.states.state is not VmState.STOPPED:
                self._lives.start_soon(self._catch_up, life)

    def _begin_catch_up(self, life: Life) -> trio.Event:
        done = trio.Event()

        async def catch_up() -> None:
            try:
                await self._catch_up(life)
            finally:
                done.set()

        self._lives.start_soon(catch_up)
        return done

    async def _catch_up(self, life: Life) -> None:
        if self.states.state is VmState.RUNNING:
            await life.catch_up()

    async def suspend(
        self, *, resumes: bool = False, unless: Callable[[], bool] = lambda: False
    ) -> bool:
        """Keep the VM on disk, and end its process. Legal while RUNNING or PAUSED.

        Gives whether it is done: ``unless`` is asked in the last moment before anything is.

        What clients do in it is cut off. If it fails, the VM goes on as it was. ``resumes`` is
        whether the VM is to go on as soon as a next daemon does.
        """
        async with self._change(VmState.RUNNING, VmState.PAUSED):
            life = self._present
            await wait_savable(life, self._surroundings)
            await self._catch_up(life)
            if unless():
                return False
            async with self._standing_still(life) as ran:
                vm = self._as_suspended(resumes and ran)
                async with self._store.scratch() as parts:
                    saved = await self._save(parts, life, uuid4().hex)
                    kept = await publish_suspended(life, self._surroundings, parts, saved, vm)
            await self._let_go(life, kept)
        return True

    @asynccontextmanager
    async def _standing_still(self, life: Life) -> AsyncIterator[bool]:
        """Pause the VM for a block, which begins where nobody can begin anything in it.

        Gives whether it ran. Only if the block fails it goes on.
        """
        ran = self.states.state is VmState.RUNNING
        if ran:
            self.states.move(VmState.PAUSED)
        try:
            if ran:
                with self._uncut("pausing"):
                    await life.vmm.pause()
            yield ran
        except BaseException:
            if ran and self.states.state is VmState.PAUSED:
                with trio.move_on_after(CHANGE_DEADLINE, shield=True):
                    await life.vmm.resume()
                    self.states.move(VmState.RUNNING)
                    await life.catch_up()
            raise

    def _as_suspended(self, resumes: bool) -> SuspendedVm:
        assert self._identity is not None
        connection = same_again(self.name, self._connection, self._plug)
        limits = self.limits.values
        return SuspendedVm(self.name, self.created, self._identity, connection, limits, resumes)

    async def _let_go(self, life: Life, kept: Manifest) -> None:
        """Take what was just stored for the VM, and end its guest."""
        try:
            self.states.move(VmState.SUSPENDED)
        except InvalidStateError:  # destroyed meanwhile
            with trio.move_on_after(CHANGE_DEADLINE, shield=True):
                await trio.to_thread.run_sync(self._store.delete, kept)
            raise
        self._source, self._life = kept, None
        self.limits.halt()
        life.over.set()
        with self._uncut("suspending"):
            await life.standby.gone.wait()
            self._leave_room()
            if self._plug is not None:
                await self._plug.detach()

    async def _wake_up(self, room: Room | None) -> None:
        """Go on where the VM was suspended. If it fails, it stays suspended."""
        kept = self._source
        life: Life = await self._lives.start(self._live, kept)
        try:
            with self._uncut("resuming"):
                if self._plug is not None:
                    await self._plug.attach(life.standby.nic, life.vmm)
                    await self._plug.connect()
            if self._scope.cancel_called:
                raise CancelledError(f"VM '{self.name}' was ended while it was resumed")
            self.states.move(VmState.RUNNING)
            self.limits.begin()
            self._life, self.room = life, room
        finally:
            if life is not self._life:
                life.over.set()
                with trio.move_on_after(CHANGE_DEADLINE, shield=True):
                    await life.standby.gone.wait()
                    if self._plug is not None:
                        await self._plug.detach()
        with self._uncut("resuming"):
            await trio.to_thread.run_sync(self._store.delete, kept)

    async def forget(self) -> None:
        """Delete what is stored of a VM that was suspended when it ended."""
        if self._source.suspended:
            await trio.to_thread.run_sync(self._store.delete, self._source)
