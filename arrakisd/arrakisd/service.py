"""Every operation of the daemon, free of transports.

A transport looks a method up in `arrakis_rpc.operations.DAEMON` and hands over its
parameters and a `Call`; it gets a result to send. A handler here is named like its
operation, with an underscore for the dot; that table says in which states it is legal and
what it raises.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
import trio
from attrs import frozen

from arrakis_rootfs.store import ImageStore
from arrakis_rpc import PROTOCOL_VERSION
from arrakis_rpc import daemon_api as api
from arrakis_rpc.converter import structure, unstructure
from arrakis_rpc.errors import (
    AlreadyExistsError,
    InvalidParamsError,
    InvalidStateError,
    UnknownMethodError,
    UnsupportedError,
)
from arrakis_rpc.guest_api import ExecSpec, Nothing
from arrakis_rpc.operations import DAEMON, Operation

from . import __version__, describe
from .config import host_memory_mib
from .doctor import examine
from .events import Events
from .host.vmm.interface import Driver, Verdict
from .image_service import ImageService
from .machine import Machine, Surroundings
from .manifest import Manifest
from .peer import CallStreams
from .proxy import call_through
from .states import VmState
from .supervisor import Supervisor
from .templates import Templates

_UNDO_DEADLINE = 10.0
_LONGEST_NAME = 63

log = structlog.get_logger()


@frozen
class Call:
    """One call as a transport sees it: its streams, and who makes it."""

    streams: CallStreams
    caller: str

    async def progress(self, text: str, step: int = 0, total: int = 0) -> None:
        """Tell the caller how far a long call is."""
        note = api.Progress(text=text, step=step, total=total)
        await self.streams.note("call.progress", unstructure(note))


class Service:
    """The operations. One instance serves all transports."""

    def __init__(
        self,
        surroundings: Surroundings,
        driver: Driver,
        supervisor: Supervisor,
        templates: Templates,
        images: ImageStore,
        events: Events,
        accelerator: Verdict,
    ) -> None:
        self._config = surroundings.config
        self._driver = driver
        self._paths = surroundings.paths
        self._store = surroundings.store
        self._supervisor = supervisor
        self._templates = templates
        self._events = events
        self._accelerator = accelerator
        self._image_service = ImageService(
            images, self._paths.scratch, Path(self._config.cache_dir)
        )
        self._began = trio.current_time()
        self._snapshot_ids: set[str] = set()
        self._handlers: dict[str, Callable[[Any, Call], Awaitable[Any]]] = {
            method: getattr(self, method.replace(".", "_"))
            for method, operation in DAEMON.items()
            if not _is_in_guest(operation)
        }

    async def handle(self, method: str, params: dict[str, Any], call: Call) -> Any:
        """Do one operation; give the wire form of its result, or raise an `ArrakisError`."""
        operation = DAEMON.get(method)
        if operation is None:
            raise UnknownMethodError(f"there is no operation '{method[:100]}'")
        typed = structure(params, operation.params)
        if _is_in_guest(operation):
            agent = self._supervisor.get(typed.vm).agent
            return unstructure(await call_through(agent, method, typed.args, call.streams))
        if not method.endswith((".list", ".info")) and not method.startswith("system."):
            log.info("call", method=method, caller=call.caller, **_loggable(params))
        return unstructure(await self._handlers[method](typed, call))

    # system

    async def system_hello(self, params: api.SystemHello, _: Call) -> api.SystemHelloResult:
        """Agree on a version of the protocol."""
        if PROTOCOL_VERSION not in params.versions:
            raise UnsupportedError(
                f"this daemon speaks version {PROTOCOL_VERSION} of the protocol, "
                f"the client {params.versions}",
                hint="install client and daemon of the same release",
            )
        return api.SystemHelloResult(version=PROTOCOL_VERSION, daemon=__version__)

    async def system_health(self, _: Nothing, __: Call) -> api.SystemHealth:
        """Answer from memory; touches no VM."""
        states = [machine.states.state for machine in self._supervisor.machines]
        return api.SystemHealth(
            status="healthy",
            timestamp=time.time(),
            uptime=trio.current_time() - self._began,
            vms={state.value: states.count(state) for state in VmState},
        )

    async def system_info(self, _: Nothing, __: Call) -> api.SystemInfo:
        """Describe this daemon."""
        return api.SystemInfo(
            daemon=__version__,
            pid=os.getpid(),
            state_dir=self._config.state_dir,
            vmm=f"{self._driver.name} {self._driver.version()}",
            accelerator=self._accelerator.accelerator,
            vcpus=os.cpu_count() or 1,
            memory_mib=host_memory_mib(),
            default_vcpus=self._config.vcpus,
            default_memory_mib=self._config.memory_mib,
            default_disk_mib=self._config.disk_mib,
        )

    async def system_doctor(self, _: Nothing, __: Call) -> api.SystemDoctor:
        """Examine this host."""
        checks = await trio.to_thread.run_sync(examine, self._config)
        checks.append(
            api.Check(
                name="accelerator",
                ok=True,
                detail=f"{self._accelerator.accelerator}: {self._accelerator.reason}",
            )
        )
        checks += [
            api.Check(name=f"stored data in {path}", ok=False, detail=reason, required=False)
            for path, reason in self._store.damaged.items()
        ]
        return api.SystemDoctor(checks=checks)

    # vm

    async def vm_start(self, params: api.VmStart, call: Call) -> api.VmInfo:
        """Start a VM from a template or a snapshot."""
        with self._supervisor.reserve([params.name]):
            source = await self._source(params, call)
            machine = await self._supervisor.wake(params.name, source)
        if params.entry_point:
            await self._enter(machine, params.entry_point)
        return machine.info()

    async def _enter(self, machine: Machine, entry_point: str) -> None:
        command = ExecSpec(shell=entry_point, background=True)
        try:
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
        self._templates.check_compatible(manifest)
        return manifest

    async def vm_list(self, _: Nothing, __: Call) -> api.VmList:
        """List all VMs."""
        return api.VmList(vms=[machine.info() for machine in self._supervisor.machines])

    async def vm_info(self, params: api.VmName, _: Call) -> api.VmInfo:
        """Describe one VM."""
        return self._supervisor.get(params.name).info()

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

    async def vm_resume(self, params: api.VmName, _: Call) -> api.VmInfo:
        """Let a paused VM go on."""
        machine = self._supervisor.get(params.name)
        await machine.resume()
        self._events.publish("vm.resumed", machine.name)
        return machine.info()

    async def vm_destroy(self, params: api.VmName, _: Call) -> Nothing:
        """End a VM and forget it."""
        await self._supervisor.destroy(self._supervisor.get(params.name))
        return Nothing()

    async def vm_destroy_all(self, _: Nothing, __: Call) -> Nothing:
        """End and forget all VMs."""
        await self._supervisor.destroy_all()
        return Nothing()

    async def vm_fork(self, params: api.VmFork, _: Call) -> api.VmList:
        """Make siblings of a VM from one snapshot of it, which is not kept."""
        source = self._supervisor.get(params.name)
        names = params.names or self._fork_names(params)
        if len(names) != params.count:
            raise InvalidParamsError(f"{params.count} forks need as many names")
        siblings: list[Machine] = []

        async def wake(name: str) -> None:
            siblings.append(await self._supervisor.wake(name, manifest))

        with self._supervisor.reserve(names):
            manifest = await self._snapshot(source, f"fork-{secrets.token_hex(8)}", "")
            try:
                async with trio.open_nursery() as nursery:
                    for name in names:
                        nursery.start_soon(wake, name)
            except BaseException:
                with trio.move_on_after(_UNDO_DEADLINE, shield=True):
                    for sibling in siblings:
                        await self._supervisor.destroy(sibling)
                raise
            finally:
                with trio.move_on_after(_UNDO_DEADLINE, shield=True):
                    await trio.to_thread.run_sync(self._store.delete, manifest)
        siblings.sort(key=lambda sibling: names.index(sibling.name))
        return api.VmList(vms=[sibling.info() for sibling in siblings])

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

    # snapshot

    async def snapshot_create(self, params: api.SnapshotCreate, _: Call) -> api.SnapshotInfo:
        """Keep a VM as it is now."""
        machine = self._supervisor.get(params.vm)
        chosen = params.id or f"{_as_id(machine.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
        if params.id is None and chosen in self._store.snapshots:
            chosen += f"-{secrets.token_hex(2)}"
        manifest = await self._snapshot(machine, chosen, params.label)
        self._events.publish("snapshot.created", machine.name, id=manifest.id)
        return describe.snapshot(manifest)

    async def _snapshot(self, machine: Machine, snapshot_id: str, label: str) -> Manifest:
        if snapshot_id in self._store.snapshots or snapshot_id in self._snapshot_ids:
            raise AlreadyExistsError(
                f"a snapshot '{snapshot_id}' exists already",
                vm=machine.name,
                hint="choose another id, or delete that snapshot",
            )
        self._snapshot_ids.add(snapshot_id)
        try:
            return await machine.snapshot(snapshot_id, label)
        finally:
            self._snapshot_ids.discard(snapshot_id)

    async def snapshot_list(self, _: Nothing, __: Call) -> api.SnapshotList:
        """List all snapshots, oldest first."""
        manifests = sorted(self._store.snapshots.values(), key=lambda one: one.created)
        return api.SnapshotList(snapshots=[describe.snapshot(one) for one in manifests])

    async def snapshot_info(self, params: api.SnapshotId, _: Call) -> api.SnapshotInfo:
        """Describe one snapshot."""
        return describe.snapshot(self._store.snapshot(params.id))

    async def snapshot_delete(self, params: api.SnapshotDelete, _: Call) -> Nothing:
        """Delete a snapshot, with ``recursive`` also all that descend from it."""
        doomed = [self._store.snapshot(params.id)]
        if params.recursive:
            for one in doomed:
                doomed += self._store.children(one.id)
        for one in reversed(doomed):
            await trio.to_thread.run_sync(self._store.delete, one)
        return Nothing()

    # image, template

    async def image_list(self, _: Nothing, __: Call) -> api.ImageList:
        """List all images."""
        return await self._image_service.list()

    async def image_build(self, params: api.ImageBuild, call: Call) -> api.ImageInfo:
        """Build an image from a Dockerfile and a context that the caller sends."""
        return await self._image_service.build(params, call.streams, call.progress)

    async def image_delete(self, params: api.ImageName, _: Call) -> Nothing:
        """Delete an image. What was started from it goes on, and keeps its files."""
        await self._image_service.delete(params.name)
        for template in list(self._store.templates.values()):
            if template.shape.image == params.name and not self._users(template):
                await trio.to_thread.run_sync(self._store.delete, template)
        stored = (*self._store.templates.values(), *self._store.snapshots.values())
        await self._image_service.collect({one.shape.image_digest for one in stored})
        return Nothing()

    async def template_list(self, _: Nothing, __: Call) -> api.TemplateList:
        """List all templates, oldest first."""
        manifests = sorted(self._store.templates.values(), key=lambda one: one.created)
        return api.TemplateList(templates=[describe.template(one) for one in manifests])

    async def template_build(self, params: api.TemplateBuild, call: Call) -> api.TemplateInfo:
        """Boot a shape once, for all later starts."""
        request = api.VmStart(
            name="template",
            image=params.image,
            vcpus=params.vcpus,
            memory_mib=params.memory_mib,
            disk_mib=params.disk_mib,
        )
        plan = await self._templates.plan(request)
        return describe.template(await self._templates.ensure(plan, call.progress))

    async def template_delete(self, params: api.TemplateId, _: Call) -> Nothing:
        """Delete a template on which nothing stands; the next start of its shape boots."""
        template = self._store.template(params.id)
        if users := self._users(template):
            raise InvalidStateError(
                f"template '{template.id}' is in use by {', '.join(users[:5])}",
                hint="delete these first",
            )
        await trio.to_thread.run_sync(self._store.delete, template)
        return Nothing()

    def _users(self, template: Manifest) -> list[str]:
        snapshots = self._store.snapshots.values()
        return [
            *(f"snapshot '{one.id}'" for one in snapshots if one.template == template.id),
            *(
                f"VM '{machine.name}'"
                for machine in self._supervisor.machines
                if machine.template == template.id and not machine.ended.is_set()
            ),
        ]

    # events

    async def events_subscribe(self, _: Nothing, call: Call) -> Nothing:
        """Send every event as a notification until the call is cancelled."""
        with self._events.subscribe() as events:
            async for event in events:
                await call.streams.note("event", unstructure(event))
        return Nothing()


def _is_in_guest(operation: Operation) -> bool:
    return operation.method.startswith(("exec.", "file."))


def _loggable(params: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in params.items()
        if key in ("name", "vm", "id", "snapshot", "image", "count") and value is not None
    }


def _as_id(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())[:40].strip("-")
