"""Templates and snapshots without a VM: small files in the places of the real ones."""

from __future__ import annotations

import hashlib
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from arrakis_rpc.errors import IntegrityError
from arrakisd.host.disks import FROZEN
from arrakisd.settings.paths import StatePaths
from arrakisd.storage.manifest import (
    DEVICE_STATE,
    EMPTY_LAYER,
    MEMORY,
    PAGES,
    Manifest,
    Shape,
    new_layer_id,
)
from arrakisd.storage.store import Store

SHAPE = Shape(
    image="base",
    image_digest="d" * 64,
    root_image="/images/root",
    kernel_digest="k" * 64,
    vcpus=1,
    memory_mib=128,
    disk_mib=64,
    vmm="qemu",
    vmm_version="1.0",
    accelerator="tcg",
)


class Shelf:
    """A store, and the means to put something into it."""

    def __init__(self, root: Path) -> None:
        self.paths = StatePaths(root)
        self.store = Store(self.paths, None)
        self.store.load()
        self._numbers = iter(range(1, 10**6))
        image = root / "image"
        if not image.exists():
            image.write_bytes(b"root image" * 100)
        digest = hashlib.sha256(image.read_bytes()).hexdigest()
        self._shape = attrs.evolve(SHAPE, root_image=str(image), image_digest=digest)

    def reopened(self) -> Shelf:
        """Give the same store as the next daemon finds it."""
        return Shelf(self.paths.root)

    def template(self, template_id: str = "template") -> Manifest:
        """Publish a template."""
        return self._publish(template_id, None)

    def snapshot(
        self,
        snapshot_id: str,
        source: Manifest,
        *,
        failed_before: bool = False,
        header: bytes | None = None,
    ) -> Manifest:
        """Publish a snapshot of a VM that was started from another one.

        ``header`` is that of its disk layer. If one ``failed_before``, the VM has a second
        layer of which no snapshot knows.
        """
        header = header if header is not None else qcow2_header(source.layers[-1].id)
        return self._publish(snapshot_id, source, header, 1 + failed_before)

    def _publish(
        self, new_id: str, source: Manifest | None, header: bytes = b"disk", count: int = 1
    ) -> Manifest:
        with self._frozen(new_id, source, header, count) as (parts, manifest, new):
            return self.store.publish(parts, manifest, manifest.layers, new)

    @contextmanager
    def moment(self, source: Manifest) -> Iterator[Manifest]:
        """Keep a VM that was started from something as it is, for a block."""
        header = qcow2_header(source.layers[-1].id)
        with (
            self._frozen("moment", source, header, 1) as (parts, manifest, new),
            self.store.moment(parts, manifest, manifest.layers, new) as moment,
        ):
            yield moment

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """As the store's own, which is for those who wait for it asynchronously."""
        with tempfile.TemporaryDirectory(dir=self.paths.scratch) as name:
            yield Path(name)

    @contextmanager
    def _frozen(
        self, new_id: str, source: Manifest | None, header: bytes, count: int
    ) -> Iterator[tuple[Path, Manifest, list[str]]]:
        held: list[str] = []
        with self.store.hold(held), self.scratch() as parts:
            source = self.store.current(source, held) if source else None
            new = [new_layer_id() for _ in range(count)]
            held += new
            for layer_id in new:
                active = self.paths.root / f"{new_id}.qcow2"
                active.write_bytes(header)
                self.store.freeze_layer(layer_id, active)
                for name in (EMPTY_LAYER, PAGES):
                    (self.paths.layer(layer_id) / name).write_bytes(b"of one that failed")
            (self.paths.layer(new[-1]) / EMPTY_LAYER).unlink()
            (self.paths.layer(new[-1]) / PAGES).unlink()
            for name in (DEVICE_STATE, EMPTY_LAYER, PAGES if source else MEMORY):
                (parts / name).write_bytes(f"{name} of {new_id}".encode() * 100)
            manifest = Manifest(
                id=new_id,
                template=source.template if source else new_id,
                parent=self.store.present_parent(source) if source else None,
                shape=self._shape,
                created=float(next(self._numbers)),
                halted=0.0,
                resync_token="00" * 32,
                layers=source.layers if source else [],
                vm="" if source is None else "vm",
                label=f"label of {new_id}",
            )
            yield parts, manifest, new

    def merge(self, manifest: Manifest, count: int) -> str:
        """Put one layer in the place of the topmost ones of a snapshot; give its id."""
        merged = new_layer_id()
        below, replaced = manifest.layers[-count - 1], manifest.layers[-count:]
        with self.store.hold([layer.id for layer in replaced]), self.scratch() as parts:
            (parts / FROZEN).write_bytes(qcow2_header(below.id))
            for name in (EMPTY_LAYER, PAGES):
                (parts / name).write_bytes(f"{name} of {merged}".encode() * 100)
            self.store.publish_merged(parts, merged, replaced)
        return merged

    def layers(self) -> set[str]:
        """Ids of the layers that are there."""
        return {path.name for path in self.paths.layers.iterdir()}

    def files_of(self, manifest: Manifest) -> list[Path]:
        """All files that a restore of it reads, and its manifest."""
        directory = self.store.directory(manifest)
        layers = [(self.paths.layer(one.id), one.files) for one in manifest.layers]
        return [
            *sorted(directory.iterdir()),
            *(place / name for place, files in layers for name in files),
            self.store.memory_file(manifest),
            Path(manifest.shape.root_image),
        ]


def qcow2_header(below: str) -> bytes:
    """Give the beginning of a disk layer on top of another."""
    name = f"../../layers/{below}/disk.qcow2".encode()
    return struct.pack(">4sIQI", b"QFI\xfb", 3, 112, len(name)).ljust(112, b"\0") + name


def is_whole(shelf: Shelf, manifest: Manifest) -> bool:
    """Whether everything that a manifest lists is there and as it was stored."""
    try:
        shelf.store.verify(manifest)
    except IntegrityError:
        return False
    return True


@contextmanager
def flipped_bit(path: Path, position: int, bit: int = 0) -> Iterator[None]:
    """Damage a file for the length of a block."""

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 1 << bit]))

    flip()
    try:
        yield
    finally:
        flip()
