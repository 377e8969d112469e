"""One VM's whole life, in one task with one nursery.

Inside the scope live the VMM process, its console pump, the agent's session and the disk
layer. When the scope ends, for whatever reason, all of them are gone.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import structlog
import trio
from attrs import frozen

from arrakis_rpc.daemon_api import Failure, VmInfo
from arrakis_rpc.errors import ArrakisError, CancelledError, InternalError, NotFoundError, VmmError
from arrakis_rpc.guest_api import ExecSpec

from .agent import GuestAgent
from .config import Config
from .deadlines import deadline
from .host.disks import active_layer, make_empty_layer
from .host.vmm.interface import Driver, LaunchSpec, Restore, SnapshotTarget, Vmm
from .identity import make_identity
from .manifest import DEVICE_STATE, EMPTY_LAYER, PAGES, Manifest
from .paths import StatePaths
from .peer import domain_error_in
from .states import StateMachine, VmState
from .store import Store

_CLEANUP_DEADLINE = 10.0
_CHANGE_DEADLINE = 60.0
_AGENT_DEADLINE = 10.0

log = structlog.get_logger()


@frozen
class Surroundings:
    """What every machine of this daemon works with."""

    config: Config
    paths: StatePaths
    store: Store


class Machine:
    """A VM that is woken from a template or snapshot. `run` is its life."""

    def __init__(
        self, name: str, source: Manifest, driver: Driver, surroundings: Surroundings
    ) -> None:
        self.name = name
        self.created = time.time()
        self.states = StateMachine(name)
        self.failure: Failure | None = None
        self.ended = trio.Event()
        self._driver = driver
        self._config = surroundings.config
        self._paths = surroundings.paths
        self._store = surroundings.store
        self._stands_on = source
        self._layers = [layer.id for layer in source.layers]
        self._layer = new_layer_id()
        self._changing = trio.Lock()
        self._changes: trio.CancelScope | None = None
        self._scope = trio.CancelScope()
        self._vmm: Vmm | None = None
        self._agent: GuestAgent | None = None

    @property
    def agent(self) -> GuestAgent:
        """The guest's agent. Legal while the VM runs; else `InvalidStateError`."""
        self.states.require(VmState.RUNNING)
        assert self._agent is not None
        return self._agent

    @property
    def template(self) -> str:
        """Id of the template at its root."""
        return self._stands_on.template

    def info(self) -> VmInfo:
        """Describe the VM as it is now. Legal in every state."""
        shape = self._stands_on.shape
        return VmInfo(
            name=self.name,
            status=self.states.state.value,
            image=shape.image,
            vcpus=shape.vcpus,
            memory_mib=shape.memory_mib,
            disk_mib=shape.disk_mib,
            created=self.created,
            snapshot=self._store.present_parent(self._stands_on),
            pid=self._vmm.pid if self._vmm else None,
            failure=self.failure,
        )

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wake the guest, give it its identity, and keep it until `end` or its own end.

        Before ``started`` any error or cancellation undoes everything and comes out; after
        it, errors are kept in ``failure``.
        """
        started = False
        try:
            with self._scope, self._store.hold(self._layers):
                async with self._directory() as directory, self._life(directory):
                    started = True
                    task_status.started()
                    await trio.sleep_forever()
            if not started:
                raise CancelledError(f"VM '{self.name}' was destroyed while it started")
        except Exception as error:
            if not started:
                raise await self._startup_error(error) from error
            self._note_failure(error)
        finally:
            if self.states.state is VmState.CREATED:  # not even its directory could be made
                self.states.move(VmState.STOPPED)
            try:
                with trio.move_on_after(_CLEANUP_DEADLINE, shield=True):
                    await trio.to_thread.run_sync(self._store.collect_layers)
            except OSError as error:
                log.warning("disk layers were not collected", reason=str(error))
            finally:
                self.ended.set()

    @asynccontextmanager
    async def _life(self, directory: Path) -> AsyncIterator[None]:
        try:
            async with self._awake(directory):
                self.states.move(VmState.RUNNING)
                yield
        finally:
            self.states.move(VmState.STOPPED)
            if self._changes is not None:
                self._changes.cancel()
            self._vmm = self._agent = None

    @asynccontextmanager
    async def _directory(self) -> AsyncIterator[Path]:
        directory = self._paths.vm(self.name)
        layer = active_layer(directory, self._layer)

        def make() -> None:
            directory.mkdir(mode=0o700, parents=True)
            shutil.copyfile(self._store.directory(self._stands_on) / EMPTY_LAYER, layer)
            self._config.give_to_vmm(layer)
            self._config.give_to_vmm(directory)

        try:
            await trio.to_thread.run_sync(make)
            yield directory
        finally:
            with trio.move_on_after(_CLEANUP_DEADLINE, shield=True):
                await trio.to_thread.run_sync(shutil.rmtree, directory, True)

    @asynccontextmanager
    async def _awake(self, directory: Path) -> AsyncIterator[None]:
        source = self._stands_on
        stored = self._store.directory(source)
        spec = LaunchSpec(
            name=self.name,
            directory=directory,
            vcpus=source.shape.vcpus,
            memory_mib=source.shape.memory_mib,
            memory_file=self._store.memory_file(source),
            root_image=Path(source.shape.root_image),
            disk=active_layer(directory, self._layer),
            accelerator=source.shape.accelerator,
            source=Restore(
                device_state=stored / DEVICE_STATE,
                pages=None if source.is_template else stored / PAGES,
            ),
            identity=self._config.vmm_identity(),
        )
        async with self._driver.launch(spec) as vmm, trio.open_nursery() as nursery:
            self._vmm = vmm
            nursery.start_soon(self._watch, vmm)
            async with trio.open_nursery() as waking:
                waking.start_soon(trio.to_thread.run_sync, self._store.verify, source)
                await vmm.start()
            token = bytes.fromhex(source.resync_token)
            self._agent = GuestAgent(self.name, vmm.open_channel, token)
            nursery.start_soon(self._agent.run)
            identity = make_identity(self.name)
            await self._agent.call_first("identity.apply", identity, self._config.start_timeout)
            with deadline(_AGENT_DEADLINE, f"setting the clock of VM '{self.name}'"):
                await self._agent.set_clock()
            yield
            nursery.cancel_scope.cancel()

    async def _watch(self, vmm: Vmm) -> None:
        end = await vmm.wait()
        if end.orderly and self.states.state is VmState.RUNNING:
            self._scope.cancel()  # the guest powered itself off
            return
        self.failure = Failure(reason=end.how, console=vmm.last_words())
        raise VmmError("\n".join([end.how, *self.failure.console]), vm=self.name)

    async def _startup_error(self, error: Exception) -> ArrakisError:
        cause = domain_error_in(error)
        if not self._store.has(self._stands_on):
            return NotFoundError(
                f"'{self._stands_on.id}' was deleted while VM '{self.name}' was started from it",
                vm=self.name,
            )
        try:
            await trio.to_thread.run_sync(self._store.verify, self._stands_on)
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
        return deadline(_CHANGE_DEADLINE, f"{what} VM '{self.name}'", shield=True)

    async def pause(self) -> None:
        """Halt the vCPUs. Legal while RUNNING."""
        async with self._change(VmState.RUNNING):
            assert self._vmm is not None
            with self._uncut("pausing"):
                await self._vmm.pause()
                self.states.move(VmState.PAUSED)

    async def resume(self) -> None:
        """Let the vCPUs go on. Legal while PAUSED."""
        async with self._change(VmState.PAUSED):
            assert self._vmm is not None
            with self._uncut("resuming"):
                await self._vmm.resume()
                self.states.move(VmState.RUNNING)
            await self._catch_up()

    async def _catch_up(self) -> None:
        """Set the clock of a guest that stood still; that it is late breaks nothing else."""
        assert self._agent is not None
        try:
            with trio.fail_after(_AGENT_DEADLINE):
                await self._agent.set_clock()
        except (ArrakisError, trio.TooSlowError) as error:
            log.warning("the guest's clock is late", vm=self.name, reason=str(error))

    async def end(self) -> None:
        """End the VM at once. Legal in every state; returns when nothing of it is left."""
        self._scope.cancel()
        await self.ended.wait()

    async def shut_down(self) -> None:
        """Ask the guest to power off, then end the VM. Legal while RUNNING or PAUSED."""
        self.states.require(VmState.RUNNING, VmState.PAUSED)
        if self.states.state is VmState.RUNNING:
            with trio.move_on_after(self._config.stop_timeout):
                await self._power_off()
        await self.end()

    async def _power_off(self) -> None:
        command = ExecSpec(argv=["systemctl", "poweroff"], background=True)
        try:
            await self.agent.call("exec.run", command)
        except ArrakisError as error:
            log.warning("guest was not asked to power off", vm=self.name, reason=str(error))
        else:
            await self.ended.wait()

    async def snapshot(self, snapshot_id: str, label: str) -> Manifest:
        """Keep the VM as it is now. Legal while RUNNING or PAUSED; the state stays.

        The guest stands still only while its changed pages are copied. On return the
        snapshot is durable; if anything fails there is none, and the VM goes on.
        """
        async with self._change(VmState.RUNNING, VmState.PAUSED):
            assert self._agent is not None
            await self._agent.wait_ready(_AGENT_DEADLINE)
            with self._store.hold(self._layers), self._store.scratch() as parts:
                return await self._snapshot_into(parts, snapshot_id, label)

    async def _snapshot_into(self, parts: Path, snapshot_id: str, label: str) -> Manifest:
        assert self._vmm is not None
        assert self._agent is not None
        source, next_layer = self._stands_on, new_layer_id()
        directory = self._paths.vm(self.name)
        next_disk, device_state = active_layer(directory, next_layer), directory / DEVICE_STATE
        await make_empty_layer(parts / EMPTY_LAYER, self._layer, source.shape.disk_mib)
        # Made ready in a place of root's own: the VMM could put a link into its directory.
        shutil.copyfile(parts / EMPTY_LAYER, parts / next_disk.name)
        self._config.give_to_vmm(parts / next_disk.name)
        (parts / next_disk.name).rename(next_disk)
        target = SnapshotTarget(device_state, parts / PAGES, next_disk)
        with self._uncut("snapshotting"):
            async with self._agent.quiet():
                token = self._agent.resync_token
                facts = await self._vmm.snapshot(target)
        self._layers.append(self._layer)
        try:
            self._store.freeze_layer(self._layer, active_layer(directory, self._layer))
        except OSError:
            self._scope.cancel()  # the guest writes to a layer that no later snapshot would know
            raise
        self._layer = next_layer
        shutil.move(device_state, parts / DEVICE_STATE)
        if self.states.state is VmState.RUNNING:
            await self._catch_up()
        manifest = Manifest(
            id=snapshot_id,
            template=source.template,
            parent=self._store.present_parent(source),
            shape=source.shape,
            created=time.time(),
            resync_token=token.hex(),
            vm=self.name,
            label=label,
            changed_pages=facts.changed_pages,
            pause=facts.pause,
        )
        self._stands_on = await trio.to_thread.run_sync(
            self._store.publish, parts, manifest, source.layers, self._layers
        )
        return self._stands_on


def new_layer_id() -> str:
    """Make an id for a disk layer."""
    return os.urandom(16).hex()
