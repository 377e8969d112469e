"""Templates, snapshots and disk layers on disk.

A template or snapshot is a directory with its device state, its memory (a template's whole
memory file, a snapshot's changed pages), an empty disk layer for its children, and a
manifest that also lists the frozen disk layers it stands on. It is published atomically:
written under ``scratch``, synced, manifest last, renamed. What is not published is never
seen, and is swept when the daemon starts.

Layers stand on their own, because a running VM needs them too, and because a snapshot can
then be deleted without touching those that came after it. A layer that no manifest and no
VM refers to is garbage.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import evolve, frozen

from arrakis_rpc.errors import ArrakisError, IntegrityError, NotFoundError

from .host.checksums import Verifier, file_digest
from .host.disks import FROZEN
from .host.files import sync
from .manifest import (
    MEMORY,
    Layer,
    Manifest,
    StoredFile,
    read_manifest,
    write_manifest,
)
from .paths import StatePaths

_BLOCK = 512  # what st_blocks counts (stat(2))


@frozen(eq=False)
class _Holder:
    layers: list[str]


class Store:
    """All published templates and snapshots, held in memory, read once at start."""

    def __init__(self, paths: StatePaths, group: int | None) -> None:
        self._paths = paths
        self._group = group
        self._verifier = Verifier()
        self._changing = threading.Lock()  # publish and delete run in threads
        self._holders: set[_Holder] = set()
        self._deleted: dict[str, str | None] = {}
        self.templates: dict[str, Manifest] = {}
        self.snapshots: dict[str, Manifest] = {}
        self.damaged: dict[Path, str] = {}

    def load(self) -> None:
        """Read every manifest and sweep what was never published. Blocks."""
        paths = self._paths
        shutil.rmtree(paths.scratch, ignore_errors=True)
        for directory in (paths.templates, paths.snapshots, paths.layers, paths.scratch):
            directory.mkdir(parents=True, exist_ok=True)
        for parent, table in (
            (paths.templates, self.templates),
            (paths.snapshots, self.snapshots),
        ):
            for directory in parent.iterdir():
                try:
                    table[directory.name] = read_manifest(directory)
                except ArrakisError as error:
                    self.damaged[directory] = str(error)
        if self.damaged:  # a damaged manifest may refer to layers that nobody else does
            self._holders.add(_Holder([layer.name for layer in paths.layers.iterdir()]))
        self.collect_layers()

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
                reason, hint=f"restore {directory} from a backup, or move it away and restart"
            )

    def has(self, manifest: Manifest) -> bool:
        """Whether a template or snapshot is still there."""
        table = self.templates if manifest.is_template else self.snapshots
        there = table.get(manifest.id)
        return there is not None and there.created == manifest.created

    def directory(self, manifest: Manifest) -> Path:
        """Where the parts of a template or snapshot are."""
        if manifest.is_template:
            return self._paths.template(manifest.id)
        return self._paths.snapshot(manifest.id)

    def memory_file(self, manifest: Manifest) -> Path:
        """The memory file that a guest's RAM maps."""
        return self._paths.template(manifest.template) / MEMORY

    def present_parent(self, manifest: Manifest) -> str | None:
        """Id of the nearest snapshot that still exists, from ``manifest`` upwards."""
        if manifest.is_template:
            return None
        # Its id may be another's by now.
        return manifest.id if self.has(manifest) else self._heir(manifest.id)

    def _heir(self, deleted: str | None) -> str | None:
        """Id of the nearest snapshot above a deleted one."""
        heir = self._deleted.get(deleted) if deleted else None
        while heir is not None and heir not in self.snapshots:
            heir = self._deleted.get(heir)
        return heir

    def children(self, snapshot_id: str) -> list[Manifest]:
        """The snapshots that were taken on top of a snapshot."""
        return [child for child in list(self.snapshots.values()) if child.parent == snapshot_id]

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a directory to write parts into; whatever is left of it is deleted."""
        directory = Path(tempfile.mkdtemp(dir=self._paths.scratch))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def freeze_layer(self, layer_id: str, active: Path) -> None:
        """Move a VM's layer, which is written no more, to where its children look for it."""
        directory = self._paths.layer(layer_id)
        directory.mkdir()
        active.rename(directory / FROZEN)

    def publish(
        self, parts: Path, manifest: Manifest, known: list[Layer], layers: list[str]
    ) -> Manifest:
        """Make what lies in a scratch directory a template or snapshot; give its manifest.

        ``layers`` are the frozen layers it stands on, from the bottom; those that are not
        ``known`` from its source are sealed now. On return all of it is durable. The caller
        has made sure that the id is free; raises `IntegrityError` where something damaged
        is in the way. Blocks.
        """
        target = self.directory(manifest)
        self.require_undamaged(target)
        sealed = {layer.id: layer.file for layer in known}
        new = [layer_id for layer_id in layers if layer_id not in sealed]
        for layer_id in new:
            directory = self._paths.layer(layer_id)
            sealed[layer_id] = self._seal(directory / FROZEN)
            self._grant(directory, 0o750)
            sync(directory)
        sync(self._paths.layers)
        manifest = evolve(
            manifest,
            layers=[Layer(layer_id, sealed[layer_id]) for layer_id in layers],
            files={path.name: self._seal(path) for path in sorted(parts.iterdir())},
        )
        with self._changing:
            if manifest.parent is not None and manifest.parent not in self.snapshots:
                manifest = evolve(manifest, parent=self._heir(manifest.parent))
            write_manifest(parts, manifest)
            self._grant(parts, 0o750)
            parts.rename(target)
            sync(target.parent)
            for name in manifest.files:
                self._verifier.trust(target / name)
            for layer_id in new:
                self._verifier.trust(self._paths.layer(layer_id) / FROZEN)
            (self.templates if manifest.is_template else self.snapshots)[manifest.id] = manifest
        return manifest

    def verify(self, manifest: Manifest) -> None:
        """Check all that a restore will read; raise `IntegrityError`. Blocks."""
        directory = self.directory(manifest)
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
            frozen_file = self._paths.layer(layer.id) / FROZEN
            self._verifier.verify(frozen_file, layer.file.size, layer.file.digest)

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
        """Delete a template or snapshot; snapshots on top of it now stand on its parent.

        Blocks.
        """
        directory = self.directory(manifest)
        doomed = self._paths.scratch / f"deleted-{directory.parent.name}-{directory.name}"
        with self._changing:
            if not self.has(manifest):
                return  # somebody else was quicker
            manifest = self.snapshots.get(manifest.id, manifest)
            for child in self.children(manifest.id):
                adopted = evolve(child, parent=manifest.parent)
                write_manifest(self.directory(child), adopted)
                self.snapshots[child.id] = adopted
            directory.rename(doomed)
            (self.templates if manifest.is_template else self.snapshots).pop(manifest.id)
            self._deleted[manifest.id] = manifest.parent
        shutil.rmtree(doomed, ignore_errors=True)
        self.collect_layers()

    def collect_layers(self) -> None:
        """Delete the layers that nothing refers to. Blocks.

        VMs go on freezing layers meanwhile. They hold a layer before they freeze it, so what
        is found here first and is not needed then, is garbage.
        """
        found = [directory.name for directory in self._paths.layers.iterdir()]
        needed = {layer for holder in list(self._holders) for layer in holder.layers}
        for manifest in (*self.templates.values(), *self.snapshots.values()):
            needed.update(layer.id for layer in manifest.layers)
        for layer_id in found:
            if layer_id not in needed:
                shutil.rmtree(self._paths.layer(layer_id), ignore_errors=True)

    def _seal(self, path: Path) -> StoredFile:
        # The VMM's user must be able to open a memory file for writing although it only ever
        # maps it privately: QEMU before 9.0 insists.
        self._grant(path, 0o660 if path.name == MEMORY else 0o440)
        sync(path)
        status = path.stat()
        return StoredFile(status.st_size, file_digest(path), status.st_blocks * _BLOCK)

    def _grant(self, path: Path, mode: int) -> None:
        # Never through a link: a VMM that a guest has taken over could have put one there.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise IntegrityError(f"{path} is no ordinary file")
            if self._group is not None:
                os.fchown(fd, 0, self._group)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)


def _find(table: dict[str, Manifest], key: str, kind: str) -> Manifest:
    try:
        return table[key]
    except KeyError:
        hint = f"there are: {', '.join(sorted(table)[:10])}" if table else f"there is no {kind} yet"
        raise NotFoundError(f"there is no {kind} '{key}'", hint=hint) from None
