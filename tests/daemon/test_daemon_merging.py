"""Merging that fails costs nobody anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from stored_things import Shelf

from arrakis_rpc.errors import VmmError
from arrakisd.host.disks import make_empty_layer, sink_layer
from arrakisd.settings.config import Config
from arrakisd.storage.manifest import Manifest, new_layer_id
from arrakisd.storage.merging import Merger
from arrakisd.storage.store import Store


class _Defect(Store):
    def is_needed(self, layer_id: str) -> bool:
        raise LookupError(layer_id)


async def attempted(root: Path, store: Store, manifest: Manifest) -> None:
    """Let a merger try to merge the layers of a snapshot, and see that it lives on."""
    merger = Merger(Config(state_dir=str(root), merge_layers=2), store)
    merger.request(manifest)
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(merger.run)
            for _ in range(2):
                while merger._pending:
                    await merger.settle(manifest)
                merger.request(manifest)
            nursery.cancel_scope.cancel()


async def test_layers_that_are_none(tmp_path: Path) -> None:
    """A program that cannot read the layers fails alone, and leaves nothing behind."""
    shelf = Shelf(tmp_path)
    top = shelf.snapshot("second", shelf.snapshot("first", shelf.template()))
    await attempted(tmp_path, shelf.store, top)
    assert list(shelf.paths.scratch.iterdir()) == []
    assert shelf.store.snapshot("second") == top


async def test_defect(tmp_path: Path) -> None:
    """What nobody has thought of ends a merge, and not the daemon."""
    shelf = Shelf(tmp_path)
    top = shelf.snapshot("second", shelf.snapshot("first", shelf.template()))
    store = _Defect(shelf.paths, None)
    store.load()
    await attempted(tmp_path, store, top)


async def test_error_of_the_program(tmp_path: Path) -> None:
    """What a failing program says is raised as it is, in no group."""
    layer = tmp_path / "vms/one/layer.qcow2"
    layer.parent.mkdir(parents=True)
    await make_empty_layer(layer, new_layer_id(), 64)
    with pytest.raises(VmmError, match="qemu-img rebase"):
        await sink_layer(layer, new_layer_id(), tmp_path / "log", None)
