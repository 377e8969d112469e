"""Templates and snapshots without a VM: small files in the places of the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arrakis_rpc.errors import IntegrityError
from arrakisd.host.disks import FROZEN
from arrakisd.manifest import DEVICE_STATE, EMPTY_LAYER, MEMORY, PAGES, Manifest, Shape
from arrakisd.paths import StatePaths
from arrakisd.store import Store

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

    def reopened(self) -> Shelf:
        """Give the same store as the next daemon finds it."""
        return Shelf(self.paths.root)

    def template(self, template_id: str = "template") -> Manifest:
        """Publish a template."""
        return self._publish(template_id, None)

    def snapshot(self, snapshot_id: str, source: Manifest) -> Manifest:
        """Publish a snapshot of a VM that was started from another one."""
        return self._publish(snapshot_id, source)

    def _publish(self, new_id: str, source: Manifest | None) -> Manifest:
        layers = [layer.id for layer in source.layers] if source else []
        with self.store.hold(layers), self.store.scratch() as parts:
            layers.append(f"{new_id}-layer{next(self._numbers)}")
            active = self.paths.root / f"{new_id}.qcow2"
            active.write_bytes(f"disk of {new_id}".encode())
            self.store.freeze_layer(layers[-1], active)
            for name in (DEVICE_STATE, EMPTY_LAYER, PAGES if source else MEMORY):
                (parts / name).write_bytes(f"{name} of {new_id}".encode() * 100)
            manifest = Manifest(
                id=new_id,
                template=source.template if source else new_id,
                parent=self.store.present_parent(source) if source else None,
                shape=SHAPE,
                created=float(next(self._numbers)),
                resync_token="00" * 32,
                vm="" if source is None else "vm",
            )
            return self.store.publish(parts, manifest, source.layers if source else [], layers)

    def layers(self) -> set[str]:
        """Ids of the layers that are there."""
        return {path.name for path in self.paths.layers.iterdir()}

    def files_of(self, manifest: Manifest) -> list[Path]:
        """All files that a restore of it reads, and its manifest."""
        directory = self.store.directory(manifest)
        return [
            *sorted(directory.iterdir()),
            *(self.paths.layer(layer.id) / FROZEN for layer in manifest.layers),
            self.store.memory_file(manifest),
        ]


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
