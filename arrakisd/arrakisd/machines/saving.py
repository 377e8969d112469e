"""Saving a guest that is awake: for a snapshot, a fork, or because its VM is suspended."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import evolve, frozen

from ..deadlines import deadline, transfer_time
from ..host.disks import active_layer, copy_empty_layer
from ..host.vmm.interface import SnapshotTarget
from ..storage.manifest import (
    DEVICE_STATE,
    EMPTY_LAYER,
    PAGES,
    Manifest,
    SavedNetwork,
    new_layer_id,
)
from ..storage.suspended import SuspendedVm, write_suspended
from .life import Life
from .surroundings import Surroundings

_AGENT_DEADLINE = 10.0
_SAVING_DEADLINE = 60.0


async def wait_savable(life: Life, surroundings: Surroundings) -> None:
    """Wait for what would make a save fail or take longer."""
    await surroundings.merger.settle(life.source)
    await life.agent.wait_ready(_AGENT_DEADLINE)


@frozen
class Saving:
    """How a guest is saved: what calls it ``id``, ``label`` and ``network``, and who is told.

    ``begin_catch_up`` lets its clock be set, if it runs, and gives what tells of the end of that.
    ``give_up`` ends a VM that nobody could save again.
    """

    id: str
    label: str
    network: SavedNetwork | None
    begin_catch_up: Callable[[], trio.Event]
    give_up: Callable[[], None]

    async def save(self, life: Life, surroundings: Surroundings, parts: Path) -> Manifest:
        """Write all that is changing into a directory; give what is known so far.

        The guest stands still meanwhile, and then goes on if it ran.
        """
        # Who is woken from this knows only for how long it slept.
        clock = self.begin_catch_up()
        limit = _SAVING_DEADLINE + transfer_time(life.source.shape.memory_mib)
        token = b""

        @asynccontextmanager
        async def still() -> AsyncIterator[None]:
            nonlocal token
            await clock.wait()
            # Cut in half, nobody could tell which layer the guest writes to.
            with deadline(limit, f"saving VM '{life.vm}'", shield=True):
                async with life.agent.quiet():
                    token = life.agent.resync_token
                    yield

        store = surroundings.store
        source, next_layer = store.current(life.source, life.held), new_layer_id()
        next_disk = active_layer(life.directory, next_layer)
        device_state = life.directory / DEVICE_STATE
        copy_empty_layer(store.empty_layer(source), parts / EMPTY_LAYER, life.layer)
        # Made ready in a place of root's own: the VMM could put a link into its directory.
        shutil.copyfile(parts / EMPTY_LAYER, parts / next_disk.name)
        surroundings.config.give_to_vmm(parts / next_disk.name)
        (parts / next_disk.name).rename(next_disk)
        known = store.page_files(source.layers)
        target = SnapshotTarget(device_state, parts / PAGES, known, next_disk)
        facts = await life.vmm.snapshot(target, still())
        life.held.append(life.layer)
        life.frozen.append(life.layer)
        try:
            store.freeze_layer(life.layer, life.disk)
        except OSError:
            self.give_up()  # the guest writes to a layer that no later snapshot would know
            raise
        life.layer = next_layer
        shutil.move(device_state, parts / DEVICE_STATE)
        return Manifest(
            id=self.id,
            template=source.template,
            parent=store.present_parent(source),
            shape=source.shape,
            created=time.time(),
            halted=facts.halted,
            resync_token=token.hex(),
            layers=source.layers,
            vm=life.vm,
            label=self.label,
            changed_pages=facts.changed_pages,
            pause=facts.pause,
            network=self.network,
        )


async def publish(life: Life, surroundings: Surroundings, parts: Path, saved: Manifest) -> Manifest:
    """Make what was saved durable. The guest stands on it from then on."""
    publish = surroundings.store.publish
    life.source = await trio.to_thread.run_sync(publish, parts, saved, saved.layers, life.frozen)
    life.frozen = []
    return life.source


async def publish_suspended(
    life: Life, surroundings: Surroundings, parts: Path, saved: Manifest, vm: SuspendedVm
) -> Manifest:
    """Make what was saved durable, as that of a VM which does not run meanwhile."""
    await trio.to_thread.run_sync(write_suspended, parts, vm)
    return await publish(life, surroundings, parts, evolve(saved, suspended=True))
