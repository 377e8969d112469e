"""One VM, from its start to its end, in one task with one nursery.

Inside the scope are its place in the network and the lives of its guest: one, and for the
moment of a rollback two. When the scope ends, for whatever reason, all of them are gone.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager

import structlog
import trio

from arrakis_rpc.daemon_api import Failure, VmInfo, VmLimits
from arrakis_rpc.errors import (
    ArrakisError,
    CancelledError,
    InternalError,
    NotFoundError,
    VmmError,
)
from arrakis_rpc.guest_api import Identity
from arrakis_rpc.network_api import VmNetwork

from ..deadlines import deadline
from ..guest.agent import GuestAgent
from ..guest.identity import make_identity, read_authorized_keys, woken_again
from ..host.net.interface import Plug, no_network
from ..storage.manifest import Manifest
from ..storage.suspended import SuspendedVm
from ..wire.peer import domain_error_in
from .admission import Room
from .connecting import described, first_request
from .heartbeat import Heartbeat
from .life import Life
from .limits import Limits
from .states import StateMachine, VmState
from .surroundings import Surroundings
from .warm import WarmGuests

CHANGE_DEADLINE = 60.0
_CLEANUP_DEADLINE = 10.0

log = structlog.get_logger()


class MachineScope:
    """A VM that is woken from a template or snapshot, or was ``suspended``. `run` is all of it."""

    def __init__(
        self,
        name: str,
        source: Manifest,
        guests: WarmGuests,
        surroundings: Surroundings,
        wish: VmNetwork,
        suspended: SuspendedVm | None = None,
        limits: VmLimits | None = None,
    ) -> None:
        self.name = name
        self.created = suspended.created if suspended else time.time()
        self.states = StateMachine(name)
        self.failure: Failure | None = None
        self.ended = trio.Event()
        self.limits = Limits(suspended.limits if suspended else limits, surroundings.config)
        self.room: Room | None = None
        self.on_timeout: Callable[[], None] = lambda: None
        self._heartbeat = Heartbeat(surroundings.config.health)
        self.on_heartbeat: Callable[[bool], None] = lambda _: None
        self._guests = guests
        self._config = surroundings.config
        self._store = surroundings.store
        self._surroundings = surroundings
        self._network = surroundings.network
        self._connection = (
            suspended.connection if suspended else first_request(name, source, wish, surroundings)
        )
        self._source = source
        self._changing = trio.Lock()
        self._changes: trio.CancelScope | None = None
        self._scope = trio.CancelScope()
        self._lives: trio.Nursery
        self._life: Life | None = None
        self._identity = suspended.identity if suspended else None
        self._plug: Plug | None = None

    @property
    def agent(self) -> GuestAgent:
        """The guest's agent. Legal while the VM runs; else `InvalidStateError`."""
        self.states.require(VmState.RUNNING)
        return self._present.agent

    @property
    def _present(self) -> Life:
        assert self._life is not None
        return self._life

    @property
    def plug(self) -> Plug:
        """Its place in the network. Legal while the VM runs or is paused."""
        self.states.require(VmState.RUNNING, VmState.PAUSED)
        if self._plug is None:
            raise no_network(self.name)
        return self._plug

    @property
    def stands_on(self) -> Manifest:
        """The template or snapshot that it was woken from, or saved as, last."""
        return self._life.source if self._life else self._source

    @property
    def template(self) -> str:
        """Id of the template at its root."""
        return self.stands_on.template

    def info(self) -> VmInfo:
        """Describe the VM as it is now. Legal in every state."""
        shape = self.stands_on.shape
        return VmInfo(
            name=self.name,
            status=self.states.state.value,
            image=shape.image,
            vcpus=shape.vcpus,
            memory_mib=shape.memory_mib,
            disk_mib=shape.disk_mib,
            created=self.created,
            template=self.template,
            snapshot=self._store.present_parent(self.stands_on),
            pid=self._life.vmm.pid if self._life else None,
            limits=self.limits.info(),
            **described(self._plug),
            failure=self.failure,
            unresponsive_since=self.unresponsive_since,
        )

    @property
    def unresponsive_since(self) -> float | None:
        """Since when its guest has not answered, in Unix time; None for one that does."""
        if self.states.state is not VmState.RUNNING:
            return None
        return self._heartbeat.silent_since(self._present.agent)

    def _to_be_asked(self) -> GuestAgent | None:
        is_still = self.states.state is not VmState.RUNNING or self._changing.locked()
        return None if is_still else self._present.agent

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wake the guest, give it its identity, and keep it until `end` or its own end.

        A VM that is suspended is started without a guest, which `resume` wakes.

        Before ``started`` any error or cancellation undoes everything and comes out; after
        it, errors are kept in ``failure``.
        """
        started = False
        try:
            with self._scope:
                async with self._network.plug(self._connection) as plug:
                    if plug is not None:
                        plug.in_use = self.limits.in_use
                    self._plug = plug
                    async with trio.open_nursery() as lives:
                        self._lives = lives
                        lives.start_soon(self.limits.watch, lambda: self.on_timeout())
                        lives.start_soon(
                            self._heartbeat.watch,
                            self._to_be_asked,
                            lambda one: self.on_heartbeat(one),
                        )
                        if self._source.suspended:
                            self.states.move(VmState.SUSPENDED)
                        else:
                            await lives.start(self._live, self._source)
                            if plug is not None:
                                await plug.connect()
                            if self.states.state is VmState.STOPPED:
                                await trio.sleep_forever()  # it ends already, and will say why
                            self.states.move(VmState.RUNNING)
                            self.limits.begin()
                        started = True
                        task_status.started()
            if not started:
                raise CancelledError(f"VM '{self.name}' was destroyed while it started")
        except Exception as error:
            if not started:
                raise await self._startup_error(error) from error
            self._note_failure(error)
        finally:
            self._allow_nothing()
            self._source, self._life, self._plug = self.stands_on, None, None
            try:
                with trio.move_on_after(_CLEANUP_DEADLINE, shield=True):
                    await trio.to_thread.run_sync(self._store.collect_layers)
            except Exception as error:  # noqa: BLE001 -- the next that ends does it
                log.warning("disk layers were not collected", reason=str(error))
            finally:
                self._leave_room()
                self.ended.set()

    def _leave_room(self) -> None:
        """Let others have the memory and the vCPUs of a guest that is no more."""
        if self.room is not None:
            self.room.give_back()
            self.room = None

    def _allow_nothing(self) -> None:
        """Let nothing more be begun with the VM, and cancel what was."""
        if self.states.state is not VmState.STOPPED:
            self.states.move(VmState.STOPPED)
        if self._changes is not None:
            self._changes.cancel()

    async def _live(self, source: Manifest, task_status: trio.TaskStatus[Life]) -> None:
        """Wake a guest, and keep it until its life is over. The first is the VM's at once."""
        async with self._guests.take(self.name, source, self._connection.egress) as life:
            is_first, was_awake = self.states.state is VmState.CREATED, life.is_awake
            if is_first:
                self._life = life
            try:
                with self._store.hold(life.held):
                    life.source = source = self._store.current(source, life.held)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._watch, life)
                        async with trio.open_nursery() as waking:
                            if is_first and self._plug is not None:
                                waking.start_soon(self._plug.attach, life.standby.nic, life.vmm)
                            if not was_awake:
                                verify = self._store.verify
                                waking.start_soon(trio.to_thread.run_sync, verify, source)
                                await life.wake(self._store, self._config)
                        limit = self._config.start_timeout
                        if was_awake:
                            await life.become(self.name, self._identify, limit)
                        else:
                            await life.settle(nursery, self._identify, limit)
                        task_status.started(life)
                        await life.over.wait()
                        nursery.cancel_scope.cancel()
            finally:
                life.kill()  # before the rules that hold it go
                with trio.move_on_after(_CLEANUP_DEADLINE, shield=True):
                    await self._end(life)

    def _identify(self, asleep: float) -> Identity:
        """Give the VM's identity, to a guest that has slept for some seconds."""
        network = self._plug.guest if self._plug else None
        if self._identity is None:
            keys = read_authorized_keys(self._config.ssh_authorized_keys)
            self._identity = make_identity(self.name, network, asleep, keys)
        else:
            self._identity = woken_again(self._identity, asleep, network)
        return self._identity

    async def _end(self, life: Life) -> None:
        if life is self._life:
            self._allow_nothing()
            async with self._changing:  # a change may still write to its directory
                await life.standby.end()
        else:
            await life.standby.end()

    async def _watch(self, life: Life) -> None:
        end = await life.vmm.wait()
        if life.over.is_set():
            return
        if end.orderly and self.states.state is VmState.RUNNING:
            self._scope.cancel()  # the guest powered itself off
            return
        words = life.vmm.last_words()
        if life is self._life:
            self.failure = Failure(reason=end.how, console=words)
        raise VmmError("\n".join([end.how, *words]), vm=self.name)

    async def _startup_error(self, error: Exception) -> ArrakisError:
        cause = domain_error_in(error)
        if not self._store.has(self.stands_on):
            return NotFoundError(
                f"'{self.stands_on.id}' was deleted while VM '{self.name}' was started from it",
                vm=self.name,
            )
        try:
            await trio.to_thread.run_sync(self._store.verify, self.stands_on)
        except ArrakisError as damage:  # be it that a VMM, fed with it, was quicker to fail
            return damage
        if cause is None:
            log.error("start failed", vm=self.name, exc_info=error)
            return InternalError(f"VM '{self.name}' could not be started: {error!r}")
        return cause

    def _note_failure(self, error: Exception) -> None:
        if self.failure is None:
            cause = domain_error_in(error) or error
            self.failure = Failure(reason=str(cause), console=[])
        log.error("VM failed", vm=self.name, reason=self.failure.reason)

    async def end(self) -> None:
        """End the VM at once. Legal in every state; returns when nothing of it is left."""
        self._scope.cancel()
        if self._life is None and self._changes is not None:
            self._changes.cancel()  # a guest that is being woken is not in the scope yet
        await self.ended.wait()

    @asynccontextmanager
    async def _change(self, *states: VmState) -> AsyncIterator[None]:
        """Work on the VM, one task at a time, in one of ``states``; its end ends the work."""
        with trio.CancelScope() as scope:
            async with self._changing:
                self.states.require(*states)
                self._changes = scope
                try:
                    yield
                except OSError:
                    self.states.require(*states)  # its files have gone with it
                    raise
                finally:
                    self._changes = None
        if scope.cancelled_caught:
            self.states.require(*states)

    def _uncut(self, what: str) -> AbstractContextManager[None]:
        """Shield a short change: cut in half, VMM and daemon would disagree about the VM."""
        return deadline(CHANGE_DEADLINE, f"{what} VM '{self.name}'", shield=True)
