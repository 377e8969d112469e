"""Templates, snapshots, suspended VMs and disk layers on disk.

A template or snapshot is a directory with its device state, a template's also with its whole
memory file, and a manifest that lists the layers it stands on. It is published atomically:
written under ``scratch``, synced, manifest last, renamed. What is not published is never
seen, and is swept when the daemon starts. A suspended VM is kept in the same way, but is no
snapshot: it is the VM's own, and nobody else can use or delete it.

A layer is what changed from one snapshot to the next: of the disk, and of the memory. Layers
stand on their own, because a running VM needs them too, and because a snapshot can then be
deleted without touching those that came after it. A layer that no manifest and no VM refers
to is garbage. Of several layers on top of each other one can be made; manifests are then
changed to name it, and VMs that go on from there use it for their next snapshot.

A *moment* is what a VM is forked from: a snapshot that nobody sees, and that is not sealed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

from attrs import evolve, frozen

from arrakis_rpc.errors import AlreadyExistsError, ArrakisError, IntegrityError, NotFoundError

from ..host.checksums import Verifier
from ..host.disks import FROZEN, name_backing
from ..host.files import entries, remove_tree, sync, temporary_directory
from ..settings.paths import StatePaths
from .lineage import Lineage
from .manifest import (
    EMPTY_LAYER,
    MEMORY,
    PAGES,
    Layer,
    Manifest,
    Shape,
    read_manifest,
    write_manifest,
)
from .sealing import Sealer


@frozen(eq=False)
class _Holder:
    layers: list[str]


@frozen
class _Merged:
    """One layer with the content of several."""

    replaced: list[Layer]
    by: Layer


class Store:
    """All published templates and snapshots, held in memory, read once at start."""

    def __init__(self, paths: StatePaths, group: int | None) -> None:
        self._paths = paths
        self._verifier = Verifier()
        self._sealer = Sealer(self._verifier, group)
        # Publish and delete run in threads. Who holds this may take the next, never the reverse.
        self._changing = threading.Lock()
        self._referring = threading.Lock()  # held for moments only, also in the event loop
        self._holders: set[_Holder] = set()
        self._merged: dict[str, _Merged] = {}  # by the topmost layer that was replaced
        self._moments: dict[str, Path] = {}
        self._suspect: _Holder | None = None
        self.templates: dict[str, Manifest] = {}
        self.snapshots: dict[str, Manifest] = {}
        self._lineage = Lineage(self.snapshots)
        self.suspended: dict[str, Manifest] = {}
        self.damaged: dict[Path, str] = {}

    def load(self) -> None:
        """Read every manifest and sweep what was never published. Blocks."""
        paths = self._paths
        remove_tree(paths.scratch)
        kept = (paths.templates, paths.snapshots, paths.suspended, paths.layers)
        for directory in (*kept, paths.scratch):
            directory.mkdir(parents=True, exist_ok=True)
        self._read()
        self.collect_layers()

    def find_unneeded(self) -> list[Path]:
        """Read every manifest, and give the layers that nothing refers to. Blocks."""
        self._read()
        needed = self._needed()
        return [one for one in entries(self._paths.layers) if one.name not in needed]

    def _read(self) -> None:
        paths = self._paths
        published = (
            (paths.templates, self.templates),
            (paths.snapshots, self.snapshots),
            (paths.suspended, self.suspended),
        )
        for parent, table in published:
            for directory in entries(parent):
                try:
                    table[directory.name] = read_manifest(directory)
                except ArrakisError as error:
                    self.damaged[directory] = str(error)
        if self.damaged:  # a damaged manifest may refer to layers that nobody else does
            self._suspect = _Holder([layer.name for layer in entries(paths.layers)])
            self._holders.add(self._suspect)

    def template(self, template_id: str) -> Manifest:
        """Give a template's manifest; raise `NotFoundError`, or `IntegrityError` if damaged."""
        self.require_undamaged(self._paths.template(template_id))
        return _find(self.templates, template_id, "template")

    def snapshot(self, snapshot_id: str) -> Manifest:
        """Give a snapshot's manifest; raise `NotFoundError`, or `IntegrityError` if damaged."""
        self.require_undamaged(self._paths.snapshot(snapshot_id))
        return _find(self.snapshots, snapshot_id, "snapshot")

    def require_undamaged(self, directory: Path) -> None:
        """Raise `IntegrityError` for the directory of something that could not be loaded."""
        if reason := self.damaged.get(directory):
            raise IntegrityError(
                reason,
                hint=f"delete it, or restore {directory} from a backup and restart the daemon",
            )

    def has(self, manifest: Manifest) -> bool:
        """Whether a template, snapshot, moment or suspended VM is still there."""
        return manifest.id in self._moments or self._is_published(manifest)

    def _is_published(self, manifest: Manifest) -> bool:
        there = self._table(manifest).get(manifest.id)
        return there is not None and there.created == manifest.created

    @property
    def _saved(self) -> list[Manifest]:
        return [*list(self.snapshots.values()), *list(self.suspended.values())]

    def _table(self, manifest: Manifest) -> dict[str, Manifest]:
        if manifest.suspended:
            return self.suspended
        return self.templates if manifest.is_template else self.snapshots

    def directory(self, manifest: Manifest) -> Path:
        """Where the parts of a template, snapshot, moment or suspended VM are."""
        if manifest.suspended:
            return self._paths.suspension(manifest.id)
        if manifest.is_template:
            return self._paths.template(manifest.id)
        return self._moments.get(manifest.id) or self._paths.snapshot(manifest.id)

    def memory_file(self, manifest: Manifest) -> Path:
        """The memory file that a guest's RAM maps."""
        return self._paths.template(manifest.template) / MEMORY

    def empty_layer(self, manifest: Manifest) -> Path:
        """The empty disk layer on top of what a template or snapshot stands on."""
        return self._paths.layer(manifest.layers[-1].id) / EMPTY_LAYER

    def page_files(self, layers: list[Layer]) -> list[Path]:
        """The page files of successive layers; the lowest first."""
        return [self._paths.layer(one.id) / PAGES for one in layers if PAGES in one.files]

    def present_parent(self, manifest: Manifest) -> str | None:
        """Id of the nearest snapshot that still exists, from ``manifest`` upwards."""
        if manifest.is_template:
            return None
        if manifest.suspended:
            return self._lineage.present(manifest.parent)
        # Its id may be another's by now.
        is_there = self._is_published(manifest)
        return manifest.id if is_there else self._lineage.heir(manifest.id)

    def ancestors(self, manifest: Manifest) -> list[Manifest]:
        """The snapshots that something descends from, itself if it is one, the nearest first."""
        return self._lineage.upwards(self.present_parent(manifest))

    def children(self, snapshot_id: str) -> list[Manifest]:
        """The snapshots that were taken on top of a snapshot."""
        return self._lineage.children(snapshot_id)

    def _adopt(self, orphaned: str, parent: str | None) -> None:
        """Give another parent to all that have one which is about to be deleted."""
        for child in [one for one in self._saved if one.parent == orphaned]:
            adopted = evolve(child, parent=parent)
            write_manifest(self.directory(child), adopted)
            self._table(child)[child.id] = adopted

    def scratch(self) -> AbstractAsyncContextManager[Path]:
        """Make a directory to write parts into; whatever is left of it is deleted.

        A block that fails because the disk is full raises `ExhaustedError`.
        """
        return temporary_directory(self._paths.scratch)

    def freeze_layer(self, layer_id: str, active: Path) -> None:
        """Move a VM's layer, which is written no more, to where its children look for it."""
        directory = self._paths.layer(layer_id)
        directory.mkdir()
        active.rename(directory / FROZEN)

    def publish(
        self, parts: Path, manifest: Manifest, known: list[Layer], new: list[str]
    ) -> Manifest:
        """Make what lies in a scratch directory a template or snapshot; give its manifest.

        It stands on the ``known`` layers of its source, and on the ``new`` ones on top of them,
        which were frozen since; pages and empty disk layer go into the topmost. On return all
        of it is durable. The caller has made sure that the id is free; raises `IntegrityError`
        where something damaged is in the way. Blocks.
        """
        target = self.directory(manifest)
        self.require_undamaged(target)
        stack = self._stack(parts, known, new)
        layers = [self._sealer.seal_layer(self._paths.layer(one.id), one) for one in stack]
        sync(self._paths.layers)
        granted = {path.name: self._sealer.grant(path) for path in sorted(parts.iterdir())}
        files = {name: self._sealer.seal(parts / name, part) for name, part in granted.items()}
        manifest = evolve(manifest, layers=layers, files=files)
        with self._changing:
            if manifest.parent is not None and manifest.parent not in self.snapshots:
                manifest = evolve(manifest, parent=self._lineage.heir(manifest.parent))
            write_manifest(parts, manifest)
            self._sealer.grant_directory(parts)
            parts.rename(target)
            sync(target.parent)
            for name in manifest.files:
                self._verifier.trust(target / name)
            self._table(manifest)[manifest.id] = manifest
        return manifest

    @contextmanager
    def moment(
        self, parts: Path, manifest: Manifest, known: list[Layer], new: list[str]
    ) -> Iterator[Manifest]:
        """Make what lies in a scratch directory something to wake guests from, during a block.

        As `publish` does, but of no more worth than the VMs that come of it: it is not
        synced, has no checksums, and is in no list. The next snapshot of one of them seals
        the layers. Blocks for less than a millisecond.
        """
        layers = self._stack(parts, known, new)
        files = {path.name: self._sealer.grant(path) for path in sorted(parts.iterdir())}
        self._sealer.grant_directory(parts)
        for name in files:
            self._verifier.trust(parts / name)
        self._lineage.note_gone(manifest.id, manifest.parent)
        self._moments[manifest.id] = parts
        try:
            yield evolve(manifest, layers=layers, files=files)
        finally:
            del self._moments[manifest.id]

    def _stack(self, parts: Path, known: list[Layer], new: list[str]) -> list[Layer]:
        """Put new layers on known ones, and what belongs to the topmost into it."""
        for name in (EMPTY_LAYER, PAGES):
            if (part := parts / name).exists():
                part.rename(self._paths.layer(new[-1]) / name)
        if known and new:
            name_backing(self._paths.layer(new[0]) / FROZEN, known[-1].id)
        grant, layer = self._sealer.grant_layer, self._paths.layer
        return [*known, *(grant(layer(one), one, whole=one == new[-1]) for one in new)]

    def adopt_layer(self, parts: Path, layer: Layer) -> Layer:
        """Make what lies in a scratch directory a layer, of which nobody knows yet. Blocks.

        The caller holds its id, and has checked its files; raises `AlreadyExistsError`.
        """
        directory = self._paths.layer(layer.id)
        if directory.exists():
            raise AlreadyExistsError(f"there is a layer {layer.id} already, of another content")
        parts.rename(directory)
        granted = self._sealer.grant_layer(directory, layer.id, whole=True, level=layer.level)
        return self._sealer.seal_layer(directory, granted)

    def layers(self) -> dict[str, Layer]:
        """All layers that a template or snapshot stands on."""
        stored = (*list(self.templates.values()), *self._saved)
        return {layer.id: layer for manifest in stored for layer in manifest.layers}

    def publish_merged(self, parts: Path, layer_id: str, replaced: list[Layer]) -> None:
        """Make what lies in a scratch directory a layer, and put it in the place of several.

        All snapshots that end with those now end with it. Blocks.
        """
        directory = self._paths.layer(layer_id)
        with self.hold([layer_id]):
            parts.rename(directory)
            level = max(one.level for one in replaced) + 1
            granted = self._sealer.grant_layer(directory, layer_id, whole=True, level=level)
            merged = _Merged(replaced, self._sealer.seal_layer(directory, granted))
            sync(self._paths.layers)
            with self._changing:
                with self._referring:
                    self._merged[replaced[-1].id] = merged
                for manifest in self._saved:
                    if (shorter := self._shortened(manifest)) is not manifest:
                        write_manifest(self.directory(manifest), shorter)
                        self._table(manifest)[manifest.id] = shorter
        self.collect_layers()

    def _shortened(self, manifest: Manifest) -> Manifest:
        merged = self._merged.get(manifest.layers[-1].id)
        if merged is None:
            return manifest
        replaced = [layer.id for layer in merged.replaced]
        if [layer.id for layer in manifest.layers[-len(replaced) :]] != replaced:
            return manifest
        below = manifest.layers[: -len(merged.replaced)]
        return self._shortened(evolve(manifest, layers=[*below, merged.by]))

    def current(self, manifest: Manifest, held: list[str]) -> Manifest:
        """Give a manifest as it is now: with the layers that have taken the place of others.

        They are added to a list that is held.
        """
        with self._referring:
            if self._is_published(manifest):
                manifest = self._table(manifest)[manifest.id]
            manifest = self._shortened(manifest)
            held += [layer.id for layer in manifest.layers if layer.id not in held]
        return manifest

    def is_needed(self, layer_id: str) -> bool:
        """Whether a template, a snapshot or a VM stands on a layer."""
        with self._referring:
            return layer_id in self._needed()

    def verify(self, manifest: Manifest) -> None:
        """Check all that a restore will read; raise `IntegrityError`. Blocks."""
        directory = self.directory(manifest)
        self.verify_image(manifest.shape)
        for name, part in manifest.files.items():
            self._verifier.verify(directory / name, part.size, part.digest)
        template = self.template(manifest.template)
        if manifest.layers[0] != template.layers[0]:  # each build makes a layer with a new id
            raise IntegrityError(
                f"{directory} stands on another build of template '{template.id}'",
                hint="its guest's memory is lost; delete it",
            )
        memory = template.files[MEMORY]
        self._verifier.verify(self.memory_file(manifest), memory.size, memory.digest)
        for layer in manifest.layers:
            for name, part in layer.files.items():
                self._verifier.verify(self._paths.layer(layer.id) / name, part.size, part.digest)

    def verify_image(self, shape: Shape) -> None:
        """Check the root image of a shape; raise `IntegrityError`. Blocks."""
        self._verifier.verify_image(Path(shape.root_image), shape.image_digest)

    @contextmanager
    def hold(self, layers: list[str]) -> Iterator[None]:
        """Keep the layers of a list from being collected, also those added to it later."""
        holder = _Holder(layers)
        self._holders.add(holder)
        try:
            yield
        finally:
            self._holders.remove(holder)

    def delete(self, manifest: Manifest) -> None:
        """Delete a template, snapshot or suspended VM; snapshots on top get its parent as theirs.

        Blocks.
        """
        directory = self.directory(manifest)
        doomed = self._paths.scratch / f"deleted-{directory.parent.name}-{directory.name}"
        with self._changing:
            if not self.has(manifest):
                return  # somebody else was quicker
            table = self._table(manifest)
            manifest = table[manifest.id]
            if table is self.snapshots:
                self._adopt(manifest.id, manifest.parent)
            directory.rename(doomed)
            table.pop(manifest.id)
            self._lineage.note_gone(manifest.id, manifest.parent)
        remove_tree(doomed)
        self.collect_layers()

    def delete_damaged(self, directory: Path) -> None:
        """Delete what could not be loaded; snapshots on top of it have no parent then. Blocks."""
        doomed = self._paths.scratch / f"damaged-{directory.parent.name}-{directory.name}"
        with self._changing:
            if directory not in self.damaged:
                return  # somebody else was quicker
            if directory.parent == self._paths.snapshots:
                self._adopt(directory.name, None)
            directory.rename(doomed)
            del self.damaged[directory]
            if not self.damaged and self._suspect is not None:
                self._holders.discard(self._suspect)  # every manifest is known now
        remove_tree(doomed)
        self.collect_layers()

    def collect_layers(self) -> None:
        """Delete the layers that nothing refers to. Blocks.

        VMs go on freezing layers meanwhile. They hold a layer before they freeze it, so what
        is found here first and is not needed then, is garbage.
        """
        found = [directory.name for directory in self._paths.layers.iterdir()]
        with self._referring:
            needed = self._needed()
            self._merged = {top: one for top, one in self._merged.items() if top in needed}
        for layer_id in found:
            if layer_id not in needed:
                remove_tree(self._paths.layer(layer_id))

    def _needed(self) -> set[str]:
        needed = {layer for holder in list(self._holders) for layer in holder.layers}
        for manifest in (*list(self.templates.values()), *self._saved):
            needed.update(layer.id for layer in manifest.layers)
        for top, merged in list(self._merged.items()):
            if top in needed:  # a VM stands on it, and may use the other for its next snapshot
                needed.add(merged.by.id)
        return needed


def _find(table: dict[str, Manifest], key: str, kind: str) -> Manifest:
    try:
        return table[key]
    except KeyError:
        labelled = [one.id for one in table.values() if one.label == key]
        which, ids = ("so labelled is", labelled) if labelled else ("there are", list(table))
        hint = f"{which}: {', '.join(sorted(ids)[:10])}" if ids else f"there is no {kind} yet"
        raise NotFoundError(f"there is no {kind} '{key}'", hint=hint) from None
