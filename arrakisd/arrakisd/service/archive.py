"""Snapshots on their way to another daemon, and from one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio
from attrs import evolve

from arrakis_rpc import daemon_api as api
from arrakis_rpc.connection import DataReceived, StreamEnded
from arrakis_rpc.errors import ExhaustedError, NotFoundError, UnsupportedError
from arrakis_rpc.guest_api import Nothing

from ..deadlines import deadline
from ..host.cpu import cpu_features
from ..host.files import free_bytes
from ..machines.events import Events
from ..machines.surroundings import Surroundings
from ..machines.templates import Templates
from ..storage.archive import Unpacker, pack
from ..storage.archive_contents import Contents
from ..storage.importing import Import
from ..storage.manifest import Manifest
from .call import Call

_CLEANUP_DEADLINE = 10.0
_STALL_DEADLINE = 60.0
_MOST_EXPORTS = 4
_STEPS = 20
_MIB = 2**20

_TAKING = "taking the next piece of the archive"
_SENDING = "sending the next piece of the archive"

Result = TypeVar("Result")


class ArchiveOperations:
    """``snapshot.export`` and ``snapshot.import``."""

    def __init__(self, surroundings: Surroundings, templates: Templates, events: Events) -> None:
        self._paths = surroundings.paths
        self._store = surroundings.store
        self._quotas = surroundings.quotas
        self._templates = templates
        self._events = events
        self._importing = trio.Lock()
        # An export keeps its thread while its client takes nothing. Others need theirs.
        self._export_threads = trio.CapacityLimiter(_MOST_EXPORTS)

    async def snapshot_export(self, params: api.SnapshotId, call: Call) -> Nothing:
        """Send a snapshot, its ancestors, and all that they stand on."""
        newest = self._store.snapshot(params.id)
        held: list[str] = []
        with self._store.hold(held):
            newest = self._store.current(newest, held)
            line = [newest, *self._store.ancestors(newest)[1:]][::-1]
            held += [layer.id for one in line for layer in one.layers]
            contents = _contents(self._store.template(newest.template), line)
            tell = _Progress(call, "exporting", contents.allocated, _TAKING)

            def send(data: bytes) -> None:
                _from_thread(partial(call.streams.send, "data", data), _TAKING)

            def work() -> None:
                self._store.verify(newest)
                pack(contents, self._paths.root, send, tell.more)

            try:
                await trio.to_thread.run_sync(work, limiter=self._export_threads)
            except FileNotFoundError as error:
                raise NotFoundError(
                    f"an ancestor of '{newest.id}' was deleted while it was exported"
                ) from error
        await call.streams.end("data")
        return Nothing()

    async def snapshot_import(self, _: Nothing, call: Call) -> api.SnapshotImported:
        """Take what another daemon has exported; those that are here already stay."""
        unpacker = Unpacker(partial(_from_thread, partial(_next_piece, call), _SENDING))
        async with self._importing:
            contents = await trio.to_thread.run_sync(unpacker.contents)
            root_image = await self._check(contents)
            one = Import(self._store, contents)
            tell = _Progress(call, "importing", contents.allocated, _SENDING)
            ids = [snapshot.id for snapshot in contents.snapshots]
            try:
                with self._quotas.new_snapshots(ids), self._store.hold(one.layer_ids):
                    async with (
                        self._store.scratch() as work,
                        self._quotas.disk(contents.allocated // _MIB),
                    ):
                        await trio.to_thread.run_sync(one.receive, unpacker, work, tell.more)
                        new = await trio.to_thread.run_sync(one.publish, work, root_image)
            except BaseException:
                with trio.move_on_after(_CLEANUP_DEADLINE, shield=True):
                    await trio.to_thread.run_sync(self._store.collect_layers)
                raise
            await self._templates.keep_images()
        for made in new:
            self._events.publish("snapshot.imported", id=made)
        return api.SnapshotImported(contents.snapshots[-1].id, new, one.present)

    async def _check(self, contents: Contents) -> Path:
        """Raise why what is in an archive cannot be woken here; give the image it needs."""
        shape = contents.template.shape
        await self._templates.check_compatible(contents.template)
        if contents.cpu and contents.cpu != await trio.to_thread.run_sync(cpu_features):
            raise UnsupportedError(
                "the archive was made on another processor",
                hint="under KVM a guest has seen all features of it, and needs them",
            )
        free = await trio.to_thread.run_sync(free_bytes, self._paths.root)
        if contents.allocated > free:
            raise ExhaustedError(
                f"the archive needs {contents.allocated // _MIB} MiB on disk, {free // _MIB} are "
                f"free in {self._paths.root}",
                hint="make room, then try again",
            )
        return await self._templates.find_image(shape)


def _contents(template: Manifest, line: list[Manifest]) -> Contents:
    cpu = "" if template.shape.accelerator == "tcg" else cpu_features()
    oldest = evolve(line[0], parent=None)  # one that is damaged is not in the line
    return Contents(cpu, template, [oldest, *line[1:]])


def _from_thread(work: Callable[[], Awaitable[Result]], what: str) -> Result:
    """Do something with a caller; raise `DeadlineError` if that makes no progress."""

    async def in_time() -> Result:
        with deadline(_STALL_DEADLINE, what):
            return await work()

    return trio.from_thread.run(in_time)


async def _next_piece(call: Call) -> bytes:
    while True:
        match await call.streams.receive():
            case DataReceived() as event:
                call.streams.consumed(event)
                return event.data
            case StreamEnded():
                return b""


class _Progress:
    """Tells a caller now and then, from a thread, how much is done."""

    def __init__(self, call: Call, text: str, total: int, what: str) -> None:
        self._tell: Callable[[int, int], None] = lambda step, steps: _from_thread(
            partial(call.progress, text, step, steps), what
        )
        self._total = max(total, 1)
        self._done = self._told = 0

    def more(self, number: int) -> None:
        """Count so many bytes more."""
        self._done += number
        step = min(_STEPS, self._done * _STEPS // self._total)
        if step > self._told:
            self._told = step
            self._tell(step, _STEPS)
