"""Merging layers in the background, so that a long line of snapshots stays fast to restore.

It goes like counting in a number system whose base is ``merge_layers``: that many successive
layers make one of the next level. So a chain grows with the logarithm of the number of
snapshots, and each change is stored once for each level at most.
"""

from __future__ import annotations

import math
from itertools import takewhile

import structlog
import trio

from arrakis_rpc.errors import ArrakisError

from ..host.disks import FROZEN, make_empty_layer, sink_layer
from ..host.page_files import PAGE, merge_page_files
from ..settings.config import Config
from .manifest import EMPTY_LAYER, PAGES, Layer, Manifest, new_layer_id
from .store import Store

_PATIENCE = 5.0
_LOG = "qemu-img.log"

log = structlog.get_logger()


class Merger:
    """Merges the topmost layers of chains, one chain at a time. `run` is its life."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config = config
        self._store = store
        self._pending: dict[str, trio.Event] = {}  # by the topmost layer
        self._send, self._requests = trio.open_memory_channel[Manifest](math.inf)

    def request(self, manifest: Manifest) -> None:
        """Have the layers of a new snapshot merged if it stands on many."""
        top = manifest.layers[-1].id
        if top not in self._pending and self._topmost(manifest):
            self._pending[top] = trio.Event()
            self._send.send_nowait(manifest)

    async def settle(self, manifest: Manifest) -> None:
        """Wait until what was requested for a snapshot is done, but not for long.

        Who takes snapshots faster than their layers are merged would get ever longer chains:
        a snapshot uses what has been merged before it, not after it.
        """
        event = self._pending.get(manifest.layers[-1].id)
        if event is not None:
            with trio.move_on_after(_PATIENCE):
                await event.wait()

    async def run(self) -> None:
        """Merge what is requested, and what an earlier daemon has left undone, until cancelled."""
        for manifest in list(self._store.snapshots.values()):
            if not self._store.children(manifest.id):
                self.request(manifest)
        async for manifest in self._requests:
            try:
                await self._merge(manifest)
            except (ArrakisError, OSError) as error:
                log.warning("layers were not merged", snapshot=manifest.id, reason=str(error))
            except Exception:  # no merge is worth the daemon
                log.exception("layers were not merged", snapshot=manifest.id)
            finally:
                self._pending.pop(manifest.layers[-1].id).set()

    def _topmost(self, manifest: Manifest) -> list[Layer]:
        """Give which layers are to be merged; the template's never is."""
        above = manifest.layers[1:]
        taken = level = 0
        while True:
            rest = [layer.level for layer in above[: len(above) - taken]]
            equal = len(list(takewhile(level.__ge__, reversed(rest))))
            if equal + bool(taken) < self._config.merge_layers:
                return above[len(above) - taken :]
            taken += equal
            level += 1

    async def _merge(self, manifest: Manifest) -> None:
        if not self._store.is_needed(manifest.layers[-1].id):
            return
        began = trio.current_time()
        held: list[str] = []
        with self._store.hold(held):
            manifest = self._store.current(manifest, held)
            if layers := self._topmost(manifest):
                await self._replace(layers, manifest)
                took = round(trio.current_time() - began, 1)
                log.info("layers merged", snapshot=manifest.id, layers=len(layers), took=took)

    async def _replace(self, layers: list[Layer], manifest: Manifest) -> None:
        config, disk_mib = self._config, manifest.shape.disk_mib
        top, below, merged = layers[-1], manifest.layers[-len(layers) - 1], new_layer_id()
        async with self._store.scratch() as work, self._store.scratch() as parts:
            # The program that reads what VMMs have written has no more rights than they have.
            # Nothing is made in its directory, where it could have put a link.
            config.give_to_vmm(work)
            await make_empty_layer(parts / FROZEN, top.id, disk_mib)
            config.give_to_vmm(parts / FROZEN)
            (parts / FROZEN).rename(work / FROZEN)
            identity = config.vmm_identity()
            await sink_layer(work / FROZEN, below.id, parts / _LOG, identity)
            (work / FROZEN).rename(parts / FROZEN)
            (parts / _LOG).unlink()
            await make_empty_layer(parts / EMPTY_LAYER, merged, disk_mib)
            paths = self._store.page_files(layers)
            end = manifest.shape.memory_mib * 2**20 // PAGE
            await trio.to_thread.run_sync(merge_page_files, paths, parts / PAGES, end)
            await trio.to_thread.run_sync(self._store.publish_merged, parts, merged, layers)
