"""What a stored template or snapshot says of itself."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

from arrakis_rpc.converter import structure
from arrakis_rpc.errors import IntegrityError
from arrakis_rpc.network_api import Egress, PortRequest

from ..host.files import sync

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
MEMORY = "memory"
PAGES = "pages"
DEVICE_STATE = "device-state"
EMPTY_LAYER = "empty-layer.qcow2"
SUSPENDED_VM = "vm"

UNSEALED = ""

_DIGEST = "digest"


@frozen
class Shape:
    """What must be equal for a saved guest to wake: the machine and what it runs on."""

    image: str
    image_digest: str
    root_image: str
    kernel_digest: str
    vcpus: int
    memory_mib: int
    disk_mib: int
    vmm: str
    vmm_version: str
    accelerator: str
    network: str = "none"


@frozen
class SavedNetwork:
    """How a VM was connected when it was saved."""

    ip: str
    egress: Egress
    ports: list[PortRequest]
    mbit: int | None = None


@frozen
class StoredFile:
    """Size and checksum of one file, and how many bytes it takes on disk, without holes.

    The checksum is ``UNSEALED``, and ``allocated`` is not known, until it is on the disk.
    """

    size: int
    digest: str
    allocated: int


@frozen
class Layer:
    """What changed since the layer below: a frozen disk layer, and pages if memory was saved.

    ``files`` also has an empty disk layer for those that go on from here. ``level`` is how
    often layers were merged to make it.
    """

    id: str
    files: dict[str, StoredFile]
    level: int = 0

    @property
    def is_sealed(self) -> bool:
        """Whether it is on the disk, with checksums. Those that a manifest names always are."""
        return all(part.digest != UNSEALED for part in self.files.values())


@frozen
class Manifest:
    """What is known of a template, a snapshot, or a suspended VM.

    ``template`` is the id of the template at the root, for a template its own. ``parent`` is
    the snapshot before this one, or None. ``layers`` are in order from the bottom.
    ``halted`` is when the guest's clocks stopped.
    ``suspended`` is one that belongs to a VM, which is not running meanwhile.
    ``resync_token`` (hexadecimal) opens the first session with the agent that sleeps in it.
    """

    id: str
    template: str
    parent: str | None
    shape: Shape
    created: float
    halted: float
    resync_token: str
    layers: list[Layer] = field(factory=list)
    vm: str = ""
    label: str = ""
    changed_pages: int = 0
    pause: float = 0.0
    boot: float = 0.0
    network: SavedNetwork | None = None
    suspended: bool = False
    files: dict[str, StoredFile] = field(factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def is_template(self) -> bool:
        """Whether this is a template."""
        return self.id == self.template

    @property
    def bytes(self) -> int:
        """What its own parts and its topmost layer take on disk, in bytes."""
        parts = [*self.files.values(), *self.layers[-1].files.values()]
        return sum(part.allocated for part in parts)


def new_layer_id() -> str:
    """Make an id for a layer."""
    return os.urandom(16).hex()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write or replace a directory's manifest, durably and all at once. Blocks."""
    new = directory / f".{MANIFEST}"
    content = asdict(manifest)
    new.write_text(json.dumps({**content, _DIGEST: _digest(content)}, indent=1))
    sync(new)
    new.rename(directory / MANIFEST)
    sync(directory)


def read_manifest(directory: Path) -> Manifest:
    """Read a directory's manifest; raise `IntegrityError` naming what is damaged. Blocks."""
    path = directory / MANIFEST
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        digest, version = content.pop(_DIGEST), content["format_version"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{path} cannot be read: {error!r}") from error
    if version != FORMAT_VERSION:
        raise IntegrityError(f"{path} has format {version}, this version reads {FORMAT_VERSION}")
    if digest != _digest(content):
        raise IntegrityError(f"{path} is not what was stored: its checksum differs")
    manifest = structure(content, Manifest)
    if manifest.id != directory.name:
        raise IntegrityError(f"{path} is that of '{manifest.id}'")
    return manifest


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
